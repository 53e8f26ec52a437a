"""Systems for language models: in one shot, cut and healed, their experts, and what attention looks back at."""

from functools import partial

from pruninglab.atlas.system import System

_shot = partial(System, topic="language models, in one shot", what="`weight`", task="tiny-llama", chapter=8)
_cut = partial(System, topic="language models, cut and healed", task="tiny-llama")
_experts = partial(System, topic="experts", what="experts of a mixture", when="`one_shot`", repair="nothing")
_cache = partial(System, topic="attention and caches", when="while it reads and writes", repair="nothing")

SYSTEMS = (
    _shot(
        name="wanda",
        title="Wanda",
        how_important="`wanda`",
        how_much="`uniform`, and the same from each row",
        when="`one_shot`, block after block",
        repair="nothing",
        claim="With half of its weights LLaMA-7B has a perplexity of 7.26 on WikiText-2 (dense 5.68, by magnitude "
        "17.29), without any update.",
        reference="M. Sun, Z. Liu, A. Bair, Z. Kolter: A simple and effective pruning approach for large language "
        "models (ICLR 2024, arXiv 2306.11695)",
    ),
    _shot(
        name="sparsegpt",
        title="SparseGPT",
        how_important="`obs`, on weights as updated so far",
        how_much="`uniform`, and the same from each 128 columns",
        when="`one_shot`, column after column",
        repair="columns that follow make up for each that is pruned, in closed form",
        claim="OPT-175B and BLOOM-176B lose 60 per cent of their weights in under 4.5 hours at hardly any perplexity.",
        reference="E. Frantar, D. Alistarh: SparseGPT: massive language models can be accurately pruned in one-shot "
        "(ICML 2023, arXiv 2301.00774)",
    ),
    _shot(
        name="gblm",
        title="GBLM-Pruner",
        how_important="`wanda`, plus |w| times the norm of its gradients",
        how_much="`uniform`, and the same from each row",
        when="`one_shot`, block after block",
        repair="nothing",
        claim="Gradients improve on activations alone: 7.15 instead of 7.26 for LLaMA-7B at half its weights.",
        reference="R. Das et al.: Beyond size: how gradients shape pruning decisions in large language models (2023, "
        "arXiv 2311.04902)",
    ),
    _shot(
        name="owl",
        title="OWL",
        how_important="`wanda`",
        how_much="`owl`: blocks with many outliers lose less",
        when="`one_shot`, block after block",
        repair="nothing",
        claim="At 70 per cent LLaMA-7B by Wanda falls from a perplexity of 85.77 to 24.55 if blocks with outliers are "
        "spared.",
        reference="L. Yin et al.: Outlier weighed layerwise sparsity (OWL) (ICML 2024, arXiv 2310.05175)",
    ),
    _shot(
        name="ecoflap",
        title="ECoFLaP",
        how_important="`wanda`",
        how_much="`ecoflap`: blocks on which the loss depends less lose more",
        when="`one_shot`, block after block",
        repair="nothing",
        claim="A coarse look at all blocks, by perturbing them, before the fine look at each makes pruned "
        "vision-language models better at high sparsity.",
        reference="Y.-L. Sung, J. Yoon, M. Bansal: ECoFLaP: efficient coarse-to-fine layer-wise pruning for "
        "vision-language models (ICLR 2024, arXiv 2310.02998)",
    ),
    _shot(
        name="perp",
        title="PERP",
        how_important="`magnitude`",
        how_much="`uniform`",
        when="`one_shot`, block after block",
        repair="`perp`: norms, biases and masked adapters learn for a while",
        claim="Training 0.01 to 0.05 per cent of the parameters repairs as much as training all, for models of 30 "
        "billion on one GPU in minutes.",
        reference="M. Zimmer et al.: PERP: rethinking the prune-retrain paradigm in the era of LLMs (2023, "
        "arXiv 2312.15230)",
    ),
    _cut(
        name="flap",
        title="FLAP",
        what="`head` and neuron",
        how_important="how much a reader's input fluctuates, times its weights' norm",
        how_much="`global`, after standardising each layer",
        when="`one_shot`",
        repair="what goes leaves its mean in the reader's bias",
        claim="LLaMA cut without any training is better than LLM-Pruner's and than a structured Wanda's.",
        reference="Y. An et al.: Fluctuation-based adaptive structured pruning for large language models (AAAI 2024, "
        "arXiv 2312.11983)",
        chapter=9,
    ),
    _cut(
        name="llm_pruner",
        title="LLM-Pruner",
        what="`head` and neuron",
        how_important="`taylor`, summed over all that goes together",
        how_much="`uniform`",
        when="`one_shot`",
        repair="nothing, or any recovery",
        claim="A fifth of LLaMA-7B goes and 50,000 texts and three hours on one GPU bring most of its abilities back.",
        reference="X. Ma, G. Fang, X. Wang: LLM-Pruner: on the structural pruning of large language models "
        "(NeurIPS 2023, arXiv 2305.11627)",
        chapter=9,
        note="The paper spares the first and the last blocks (`spare=`) and repairs with adapters.",
    ),
    _cut(
        name="slicegpt",
        title="SliceGPT",
        what="directions of the stream",
        how_important="the variance along a principal component",
        how_much="`uniform`",
        when="`one_shot`, block after block",
        repair="nothing: the model is turned, which changes nothing, and then cut",
        claim="A quarter of the parameters goes; Llama-2 70B and OPT 66B keep 99, Phi-2 90 per cent of their accuracy "
        "on tasks they were not trained for.",
        reference="S. Ashkboos et al.: SliceGPT: compress large language models by deleting rows and columns "
        "(ICLR 2024, arXiv 2401.15024)",
        chapter=9,
    ),
    _cut(
        name="shortgpt",
        title="ShortGPT",
        what="`layer`: whole blocks",
        how_important="`block_influence`",
        how_much="the lowest of all blocks",
        when="`one_shot`",
        repair="nothing, or any recovery",
        claim="Many blocks of large models hardly turn what passes through, and leaving them out is simpler and better "
        "than making all of them narrower.",
        reference="X. Men et al.: ShortGPT: layers in large language models are more redundant than you expect (2024, "
        "arXiv 2403.03853)",
        chapter=9,
    ),
    _cut(
        name="minitron",
        title="Minitron",
        what="`layer`, then `head` and neuron",
        how_important="how active they are; blocks by `block_influence`",
        how_much="`uniform`",
        when="`one_shot`",
        repair="`distill`, from the model as it was",
        claim="Models of 8 and 4 billion parameters made from one of 15 take up to 40 times fewer tokens than from "
        "scratch, and are up to 16 per cent better on MMLU.",
        reference="S. Muralidharan et al.: Compact language models via pruning and knowledge distillation "
        "(NeurIPS 2024, arXiv 2407.14679)",
        chapter=9,
        note="Neither the stream's width nor the search among shapes.",
    ),
    _cut(
        name="loraprune",
        title="LoRAPrune",
        what="`head` and neuron",
        how_important="weight times a gradient that is told from adapters' gradients",
        how_much="`uniform`",
        when="`gradual`, while adapters learn",
        repair="the adapters",
        claim="At half of LLaMA-7B perplexity is 4.81 lower than LLM-Pruner's on WikiText-2, with 52.6 per cent less "
        "memory.",
        reference="M. Zhang et al.: LoRAPrune: structured pruning meets low-rank parameter-efficient fine-tuning "
        "(2023, arXiv 2305.18403)",
    ),
    _cut(
        name="compresso",
        title="Compresso",
        what="`head` and neuron",
        how_important="hard concrete gates that learn",
        how_much="`global`: as the gates settle, held to the budget by multipliers",
        when="while adapters learn",
        repair="the adapters",
        claim="LLaMA-7B made 5.4 billion large keeps its level, and reads 2.62 per cent better.",
        reference="S. Guo et al.: Compresso: structured pruning with collaborative prompting learns compact large "
        "language models (2023, arXiv 2310.05015)",
        note="Without gates on the stream's width and without the prompt that tells the model of its pruning.",
    ),
    _cut(
        name="adapt_pruner",
        title="Adapt-Pruner",
        what="`head` and neuron",
        how_important="`taylor` or `magnitude`, summed over all that goes together",
        how_much="`adapt_pruner`: blocks that turn their input more lose less",
        when="a little at a time, with training between",
        repair="`finetune`",
        claim="LLaMA-3.1-8B is 1 to 7 per cent better than cut by LLM-Pruner, FLAP or SliceGPT, and small models "
        "regain MMLU with 200 times fewer tokens.",
        reference="R. Pan et al.: Adapt-Pruner: adaptive structural pruning for efficient small language model "
        "training (2025, arXiv 2502.03460)",
        chapter=8,
        note="Its shares of blocks are there, for single weights: `ratios='adapt_pruner'`.",
    ),
    _cut(
        name="atp",
        title="ATP, all-in-one tuning and pruning",
        what="`head` and neuron",
        how_important="a small network that makes masks, and learns",
        how_much="what it leaves, held to a budget by the loss",
        when="in turns with the adapters that learn",
        repair="the adapters, pressed to zero where structures go",
        claim="At 40 per cent Llama-2-7B and Llama-3-8B keep 88 and 91 per cent of their ability in law and medicine.",
        reference="L. Lu et al.: All-in-one tuning and structural pruning for domain-specific LLMs (2024, "
        "arXiv 2412.14426)",
    ),
    _cut(
        name="gaprune",
        title="GAPrune",
        what="`weight` of MLPs",
        how_important="Fisher of the domain against that of general text, and whether their gradients agree",
        how_much="`global`, after standardising each layer",
        when="`one_shot`",
        repair="nothing, or `finetune`",
        claim="Embedding models without half of their weights stay within 2.5 per cent, and 100 steps later are up to "
        "4.51 per cent better in finance.",
        reference="Y. Tang, Y. Yang: GAPrune: gradient-alignment pruning for domain-aware embeddings (2025, "
        "arXiv 2509.10844)",
    ),
    _experts(
        name="easy_ep",
        title="EASY-EP",
        how_important="gate times size of what the expert gives, times how much the token is changed by all of them",
        how_much="the same number from each layer",
        claim="Half of the experts of DeepSeek-R1, chosen by a few demonstrations, do as well in their domain at 2.99 "
        "times the throughput.",
        reference="Z. Dong et al.: Domain-specific pruning of large mixture-of-experts models with few-shot "
        "demonstrations (2025, arXiv 2504.06792)",
    ),
    _experts(
        name="premoe",
        title="PreMoe",
        how_important="the router's expected score for the task",
        how_much="the same number from each layer, looked up for each task",
        claim="DeepSeek-R1 keeps 97.2 per cent on MATH500 with half of its experts.",
        reference="Z. Pei et al.: PreMoe: lightening MoEs on constrained memory by expert pruning and retrieval (2025, "
        "arXiv 2505.17639)",
    ),
    _experts(
        name="reap",
        title="REAP",
        how_important="mean of gate times size of what the expert gives, over its own tokens",
        how_much="the same number from each layer",
        claim="Removing experts in one shot beats merging them, also at half.",
        reference="M. Lasby et al.: REAP the experts: why pruning prevails for one-shot MoE compression (2025)",
    ),
    _cache(
        name="h2o",
        title="H2O, heavy hitters",
        what="keys and values of past tokens",
        how_important="attention received so far, summed",
        how_much="the same number for each head, half of it for the latest tokens",
        claim="With a fifth of the cache OPT writes up to 29 times faster than with other engines.",
        reference="Z. Zhang et al.: H2O: heavy-hitter oracle for efficient generative inference of large language "
        "models (NeurIPS 2023, arXiv 2306.14048)",
    ),
    _cache(
        name="a2sf",
        title="A2SF",
        what="keys and values of past tokens",
        how_important="attention received, older one forgotten little by little",
        how_much="the same number for each head",
        claim="Forgetting is fair to young tokens: up to 7.8 per cent better than plain sums for LLaMA 2 with one "
        "example.",
        reference="H. Jo, D. Shin: A2SF: accumulative attention scoring with forgetting factor for token pruning in "
        "transformer decoder (2024, arXiv 2407.20485)",
    ),
    _cache(
        name="spatten",
        title="SpAtten",
        what="tokens, heads, and values of low attention",
        how_important="attention received and size of what a head gives, summed over layers",
        how_much="more from layer to layer; what is gone is gone for all that follow",
        claim="Ten times less is read from memory at no loss, and built into a chip attention is 162 times faster than "
        "on a TITAN Xp.",
        reference="H. Wang, Z. Zhang, S. Han: SpAtten: efficient sparse attention architecture with cascade token and "
        "head pruning (HPCA 2021, arXiv 2012.09852)",
    ),
    _cache(
        name="hip",
        title="HiP attention",
        what="keys that a query looks at",
        how_important="query times key, found by a search in a tree",
        how_much="the same number for each query",
        claim="Trained models attend in T log T time and T memory, without training again.",
        reference="H. Lee et al.: A training-free sub-quadratic cost transformer model serving framework with "
        "hierarchically pruned attention (2024, arXiv 2406.09827)",
    ),
)
