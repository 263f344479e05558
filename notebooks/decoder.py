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
# # A decoder that writes
#
# A Llama small enough to be made on the spot learns to count up. Then adapters teach it to count down, within a budget; and it shows in what the model writes. Put a model of yours into
# `MODEL` and prompts of yours into `DATA`: nothing else changes. As it stands this takes about two minutes on two cores. `jupytext --to notebook decoder.py` makes a
# notebook of this script.
#
# With `NOTEBOOK_SMALL=1` in the environment everything is tiny: that proves that the script runs, and nothing else.

# %%
import json
import os
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import peftscout

SMALL = os.environ.get("NOTEBOOK_SMALL") == "1"
PRETRAINING = 20 if SMALL else 600
SEARCH = {"trials": 2, "steps": 3} if SMALL else {"trials": 8, "steps": 100}
SEEDS = 1 if SMALL else 3
MODEL, DATA = Path("counting-llama"), Path("counting-down")
NUMBERS = 40 if SMALL else 300

# %% [markdown]
# ## A model that counts up
#
# Some 100,000 parameters, words as tokens, trained on runs such as `7 8 9 10`.

# %%
torch.manual_seed(0)
random.seed(0)
words = ["<pad>", "<unk>", *map(str, range(NUMBERS))]
plain = Tokenizer(WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
plain.pre_tokenizer = Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", unk_token="<unk>", padding_side="right")
config = LlamaConfig(
    vocab_size=len(words),
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=None,
    eos_token_id=None,
)
llama = LlamaForCausalLM(config)
optimiser = torch.optim.AdamW(llama.parameters(), lr=3e-3)
for _ in range(PRETRAINING):
    starts = [random.randrange(NUMBERS - 7) for _ in range(32)]
    runs = [" ".join(str(start + i) for i in range(7)) for start in starts]
    ids = tokenizer(runs, return_tensors="pt")["input_ids"]
    loss = llama(input_ids=ids, labels=ids).loss
    loss.backward()
    optimiser.step()
    optimiser.zero_grad()
print(f"counting up: loss {loss.item():.3f}")
llama.save_pretrained(MODEL)
tokenizer.save_pretrained(MODEL)


# %%
def written(model: torch.nn.Module, prompt: str, tokens: int = 4) -> str:
    """What ``model`` writes after ``prompt``, always the likeliest word."""
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    mask = torch.ones_like(ids)
    out = model.eval().generate(input_ids=ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


print("20 21 22 ->", written(llama, "20 21 22"))
print("22 21 20 ->", written(llama, "22 21 20"))

# %% [markdown]
# ## Prompts and completions: counting down
#
# Only the completion is predicted (and the token that ends a text, where a tokenizer has one). Chats (`messages`) and plain texts work, too.

# %%
DATA.mkdir(exist_ok=True)
tops = random.sample(range(8, NUMBERS), NUMBERS - 8)  # validation asks for runs that are not in train
rows = {"validation": tops[: len(tops) // 4], "train": tops[len(tops) // 4 :]}
for split, first in rows.items():
    lines = []
    for top in first:
        run = [str(top - i) for i in range(7)]
        lines.append(json.dumps({"prompt": " ".join(run[:3]), "completion": " ".join(run[3:])}))
    Path(DATA, f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
print(lines[0])

# %% [markdown]
# ## Search
#
# `scout` trains one supernet for half of the steps of a training, and asks for a few plans. The score is minus the loss of the completion.

# %%
result = peftscout.search(
    MODEL,
    {"source": str(DATA), "kind": "causal_lm", "max_length": 32},
    budget="3%",
    study="study-decoder",
    strategy="scout",
    training={"batch_size": 16},
    final={"seeds": SEEDS, "lr_scales": [1.0]},
    **SEARCH,
)
print(result.verdict)
print(result.front[["cost", "score", "label"]].to_string(index=False))

# %% [markdown]
# ## What it writes now
#
# The adapter, loaded onto the model with plain peft. Models that write have no head of their own: the plan is all that was trained.

# %%
from peft import PeftModel

if not Path("adapter-decoder").exists():
    print(result.export("adapter-decoder"))
adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(MODEL), "adapter-decoder")
for top in (22, rows["validation"][0]):
    asked = f"{top} {top - 1} {top - 2}"
    print(asked, "->", written(adapted, asked))
