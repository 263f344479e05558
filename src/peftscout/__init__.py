"""peftscout: finds which PEFT modules to put where, and how large, within a budget of trainable parameters."""

__version__ = "0.1.0"
