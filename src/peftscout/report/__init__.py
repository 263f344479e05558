"""What people look at: tables, figures and texts made from plain data."""
