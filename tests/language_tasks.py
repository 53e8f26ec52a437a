"""A language task that is made in a blink: a Llama of two narrow blocks, and text in which tokens follow rules."""

import torch

from pruninglab.layers import prunable
from pruninglab.tasks import LanguageTask, Training


def tiny_text_task(
    width: int = 16, blocks: int = 2, vocabulary: int = 24, length: int = 12, windows: int = 40, **options
) -> LanguageTask:
    """A Llama from a config with random weights (norms too), and windows of a random text: `windows` to train with.

    After each token only three may come, so that there is something to learn. Other options are the config's.
    """
    config = {
        "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": 3 * width // 2 // 4 * 4,
        "num_hidden_layers": blocks, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "use_cache": False, "bos_token_id": None, "eos_token_id": None,
    } | options  # fmt: skip

    def load():
        generator = torch.Generator().manual_seed(0)
        table = torch.randint(vocabulary, (vocabulary, 3), generator=generator)
        splits = {}
        for name, n in (("train", windows), ("validation", 8), ("test", 12)):
            tokens = [torch.randint(vocabulary, (n,), generator=generator)]
            for _ in range(length):
                tokens.append(table[tokens[-1], torch.randint(3, (n,), generator=generator)])
            text = torch.stack(tokens, 1)
            splits[name] = (text[:, :-1].contiguous(), text[:, 1:].contiguous())
        return splits

    def build():
        from transformers import LlamaConfig, LlamaForCausalLM

        model = LlamaForCausalLM(LlamaConfig(**config))
        for parameter in model.parameters():  # wide enough that attention is not the same everywhere
            torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)
        return model

    return LanguageTask(
        "tiny text",
        load,
        build,
        Training(steps=20, batch=8, lr=1e-2, weight_decay=0.0, optimizer="adamw"),
        encode=lambda text: [byte % vocabulary for byte in text.encode()],
        decode=lambda tokens: "".join(chr(ord("a") + token) for token in tokens),
    )


def inside(model):
    """The layers of the blocks, found by their names."""
    return {name: layer for name, layer in prunable(model).items() if name.startswith("model.layers.")}


def calls(model, x, modules):
    """Name → what the module was given and what it gave, when the whole model runs."""
    seen = {}
    hooks = [
        module.register_forward_hook(lambda _m, given, out, name=name: seen.update({name: (given[0], out)}))
        for name, module in modules.items()
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return seen


def interrupted(task):
    """The same task, whose training is interrupted at its very end."""

    class Interrupted(LanguageTask):
        def train(self, model, **options):
            super().train(model, **options)
            raise KeyboardInterrupt

    return Interrupted(task.name, task.load, task.build, task.training)
