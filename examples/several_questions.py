"""Read a text once, hold half of its cache, and ask several questions of it.

    python examples/several_questions.py

Needs the small language model: `tenuto models pull smollm2`. Every question is asked of a copy (a fork) of the
compressed cache, so none sees the others; question and answer stay whole on top of the budget.
"""

import torch

import tenuto
from tenuto.zoo.language import load_language

TEXT = "The kettle is warm. The window is open. " * 12
FACTS = {"lamp": "41733", "boat": "90218", "piano": "57064"}


def main() -> None:
    torch.set_num_threads(1)
    language = load_language("bundled:smollm2")
    context = TEXT.join(f"The code of the {thing} is {code}. " for thing, code in FACTS.items()) + TEXT
    with tenuto.attach(language.model, tenuto.KVzip(), budget=tenuto.MemoryBudget.keep(0.5)) as run, torch.no_grad():
        cache = run.cache()
        language.model(language.encode(context), past_key_values=cache)
        for thing in FACTS:
            fork, said = cache.fork(), []
            ids = language.encode(f"\n\nQuestion: What is the code of the {thing}?\nAnswer: The code of the {thing} is")
            with run.whole():
                while len(said) < 6:
                    ids = language.model(ids, past_key_values=fork).logits[:, -1:].argmax(-1)
                    said.append(int(ids))
            print(f"{thing}: {language.decode(torch.tensor(said)).strip()}")
        print(f"{cache.bytes_held} of {cache.bytes_full} bytes held")


if __name__ == "__main__":
    main()
