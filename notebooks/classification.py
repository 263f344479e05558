# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Text classification
#
# A pretrained encoder, a GLUE-like task, and a budget of 0.35 % trainable parameters: which PEFT modules, where, and how large? As it stands this takes some
# minutes on two cores, without a hub and without a GPU. `jupytext --to notebook classification.py` makes a notebook of this script.
#
# With `NOTEBOOK_SMALL=1` in the environment everything is tiny: that proves that the script runs, and nothing else.

# %%
import os
from pathlib import Path

import peftscout
from peftscout.demo import LIBRARIES, build_task, model_path
from peftscout.space import presets

SMALL = os.environ.get("NOTEBOOK_SMALL") == "1"
ROWS = {"train_rows": 64, "validation_rows": 32} if SMALL else {"train_rows": 1200, "validation_rows": 300}
SEARCH = {"trials": 2, "steps": 2} if SMALL else {"trials": 8, "steps": 60}
SEEDS = 1 if SMALL else 3
TRAINING = {"batch_size": 8 if SMALL else 16, "evaluations": 1}

# %% [markdown]
# ## Model and data
#
# Any hub id or folder of an encoder would do, and any folder with `train.jsonl` and `validation.jsonl`; or the name of a GLUE task, such as `glue/rte`. Here: MiniLM (6 layers,
# 22.7 million parameters), and docstrings whose names are masked. Which library is each from?

# %%
model = model_path()
data = build_task("data", **ROWS)
print("labels:", ", ".join(LIBRARIES))
print(Path(data, "train.jsonl").read_text(encoding="utf-8").splitlines()[0])

# %% [markdown]
# ## Where ops can sit, and what they cost
#
# Nothing is loaded for this but the configuration.

# %%
model_map = peftscout.map_model(model)
budget = peftscout.Budget.parse("0.35%", model_map.total)
space = peftscout.load_space("all", model_map.sites)
print(f"{len(model_map.sites)} places, budget {budget}")
print(f"space 'all': {len(space.choices)} choices, about 10^{len(str(space.cardinality())) - 1} plans")
for name, description in presets().items():
    print(f"  {name}: {description}")

# %% [markdown]
# ## Search
#
# Trial 0 is LoRA on queries and values at the largest rank that the budget allows. The others are random draws here, the reference that every strategy has to
# beat; `strategy="scout"` or `"autopeft"` search. At the end the best plan and the baseline are trained with fresh seeds and compared on rows that no trial has seen. The
# same call again goes on where it was, or returns the finished study.

# %%
result = peftscout.search(
    model,
    data,
    budget="0.35%",
    study="study-classification",
    strategy="random",
    training=TRAINING,
    final={"seeds": SEEDS, "lr_scales": [1.0]},
    **SEARCH,
)
print(result.verdict)

# %% [markdown]
# ## Look at it
#
# `result.trials` and `result.front` are pandas tables. `result.report()` writes a page with figures that opens from disk.

# %%
print(result.front[["cost", "score", "label"]].to_string(index=False))
by_op: dict[str, int] = {}
for placement in result.best.plan:
    own = peftscout.Plan((placement,)).cost(model_map.sites)
    by_op[placement.op] = by_op.get(placement.op, 0) + own
print("parameters by op:", by_op)
print("open", result.report().html)

# %% [markdown]
# ## Export, and load with plain peft
#
# The export is loaded in a fresh process and must give the same outputs before the folder appears. For a mixture, `import peftscout` (above) is all that peft needs.

# %%
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

if not Path("adapter-classification").exists():
    print(result.export("adapter-classification"))
base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=len(LIBRARIES))
classifier = PeftModel.from_pretrained(base, "adapter-classification").eval()
tokenizer = AutoTokenizer.from_pretrained(model)
texts = ["Fit an ensemble of trees and predict the class of each sample.", "Apply dropout to the hidden units."]
batch = tokenizer(texts, padding=True, return_tensors="pt")
labels = result.summary["labels"]
for text, label in zip(texts, classifier(**batch).logits.argmax(-1).tolist(), strict=True):
    print(f"{labels[label]:>8}  {text}")
