"""Systems that remove no weights: tokens, training samples, Gaussians, branches; and pruning in unusual places."""

from functools import partial

from pruninglab.atlas.system import System

_tokens = partial(System, topic="tokens", what="tokens of a picture")
_untrained = partial(_tokens, when="while it reads", repair="nothing")
_data = partial(System, topic="training data", what="training samples")
_elsewhere = partial(System, topic="elsewhere")

SYSTEMS = (
    _tokens(
        name="dynamicvit",
        title="DynamicViT",
        how_important="a small network's prediction, learned with the rest",
        how_much="the same fraction at each of three places, so that ever fewer are left",
        when="while it reads, and while it is tuned",
        repair="`finetune` with `distill`",
        claim="Without two thirds of the tokens vision transformers need 31 to 37 per cent fewer operations and give "
        "over 40 per cent more pictures a second, for at most half a point.",
        reference="Y. Rao et al.: DynamicViT: efficient vision transformers with dynamic token sparsification "
        "(NeurIPS 2021, arXiv 2106.02034)",
    ),
    _tokens(
        name="evit",
        title="EViT",
        how_important="attention from the class token",
        how_much="the same fraction at each of three places",
        when="while it reads; in training too",
        repair="what goes is fused into one token; `finetune`",
        claim="DeiT-S is half as fast again for 0.3 points on ImageNet.",
        reference="Y. Liang et al.: Not all patches are what you need: expediting vision transformers via token "
        "reorganizations (ICLR 2022, arXiv 2202.07800)",
    ),
    _untrained(
        name="tome",
        title="ToMe, token merging",
        how_important="likeness of keys: pairs that are alike become one",
        how_much="the same number in each block",
        claim="Large vision transformers give twice as many pictures a second for 0.2 to 0.3 points, without training.",
        reference="D. Bolya et al.: Token merging: your ViT but faster (ICLR 2023, arXiv 2210.09461)",
    ),
    _untrained(
        name="fastv",
        title="FastV",
        how_important="attention received in the second layer of the language model",
        how_much="half, for all layers that follow",
        claim="LLaVA-1.5-13B needs 45 per cent fewer operations at no loss.",
        reference="L. Chen et al.: An image is worth 1/2 tokens after layer 2 (ECCV 2024, arXiv 2403.06764)",
    ),
    _untrained(
        name="vtc_cls",
        title="VTC-CLS",
        how_important="attention from the class token, summed over layers",
        how_much="a fixed number, before the language model",
        claim="The class token alone tells which tokens matter, better than other rules without training.",
        reference="A. Wang et al.: [CLS] token tells everything needed for training-free efficient MLLMs (2024, "
        "arXiv 2412.05819)",
    ),
    _untrained(
        name="fopru",
        title="FoPru",
        how_important="attention received in the picture encoder",
        how_much="a fixed fraction of tokens, or of rows of the picture",
        claim="Language models that see need far fewer tokens of a picture at hardly any loss, without training.",
        reference="L. Jiang et al.: FoPru: focal pruning for efficient large vision-language models (2024, "
        "arXiv 2411.14164)",
    ),
    _untrained(
        name="flowcut",
        title="FlowCut",
        how_important="attention from the class token and likeness to it, times the size of values, over layers",
        how_much="more where attention is concentrated, layer after layer",
        claim="LLaVA-1.5-7B without 88.9 per cent of its picture tokens is 1.6 per cent better than the best before.",
        reference="J. Tong et al.: FlowCut: rethinking redundancy via information flow for efficient vision-language "
        "models (2025, arXiv 2505.19536)",
    ),
    _untrained(
        name="vflowopt",
        title="VFlowOpt",
        how_important="attention to the tokens that all look at, and the entropy of the patch",
        how_much="a search for the fractions of three stages that change the answer's state least",
        claim="Without 90 per cent of the picture tokens 90 per cent of the ability stays, with 89 per cent less cache "
        "and 3.8 times the speed.",
        reference="S. Yang et al.: VFlowOpt: a token pruning framework for LMMs with visual information flow-guided "
        "optimization (ICCV 2025, arXiv 2508.05211)",
    ),
    _untrained(
        name="zoo_prune",
        title="ZOO-Prune",
        how_important="how far the projector's output moves if a token is shaken, times how unlike it is to those kept",
        how_much="a fixed number, before the language model",
        claim="Up to 94.4 per cent of the picture tokens go without loss of accuracy, and answers come up to 2.3 times "
        "faster.",
        reference="Y. Kim et al.: Training-free token pruning via zeroth-order gradient estimation in vision-language "
        "models (2025, arXiv 2509.24837)",
    ),
    _tokens(
        name="atp_llava",
        title="ATP-LLaVA",
        how_important="attention among picture tokens and from the text, and an even grid",
        how_much="thresholds that a small network sets for each picture and question",
        when="while it reads, at three layers",
        repair="`finetune`, with a penalty on the number of tokens",
        claim="A quarter of the tokens keeps 98.1 per cent of the ability.",
        reference="X. Ye et al.: ATP-LLaVA: adaptive token pruning for large vision language models (CVPR 2025, "
        "arXiv 2412.00447)",
    ),
    _data(
        name="data_diet",
        title="EL2N and GraNd",
        how_important="error, or size of the gradient, early in training, over several networks",
        how_much="`global`: the hardest stay",
        when="`before_training`, after a short one",
        repair="the training itself",
        claim="Half of CIFAR-10 is enough for full accuracy.",
        reference="M. Paul, S. Ganguli, G. K. Dziugaite: Deep learning on a data diet: finding important examples "
        "early in training (NeurIPS 2021, arXiv 2107.07075)",
    ),
    _data(
        name="forgetting",
        title="Forgetting events",
        how_important="how often a sample that was right becomes wrong",
        how_much="`global`: those that are never forgotten go",
        when="after one training, for the next",
        repair="the training itself",
        claim="Many samples are never forgotten once learned, and can be left out at no loss.",
        reference="M. Toneva et al.: An empirical study of example forgetting during deep neural network learning "
        "(ICLR 2019, arXiv 1812.05159)",
    ),
    _data(
        name="prototypes",
        title="Beyond neural scaling laws",
        how_important="distance from the nearest centre of a clustering",
        how_much="the hardest stay where data are plenty, the easiest where they are scarce",
        when="`before_training`",
        repair="the training itself",
        claim="With the right samples left out, error falls faster with their number than by a power.",
        reference="B. Sorscher et al.: Beyond neural scaling laws: beating power law scaling via data pruning "
        "(NeurIPS 2022, arXiv 2206.14486)",
    ),
    _data(
        name="influence_scores",
        title="Influence scores at scale",
        how_important="how much the gradient at the input varies over training (VoG)",
        how_much="`global`: the highest stay",
        when="after one training, for the next",
        repair="the training itself",
        claim="Language models can be tuned on about half of the samples at no loss.",
        reference="N. Anand, J. Tan, M. Minakova: Influence scores at scale for efficient language data sampling "
        "(EMNLP 2023, arXiv 2311.16298)",
    ),
    _data(
        name="kd_data_pruning",
        title="Distilling the knowledge in data pruning",
        how_important="`random`, or any other",
        how_much="a fixed fraction",
        when="`before_training`",
        repair="`distill`, from a teacher that saw all samples",
        claim="With a teacher random samples do as well as chosen ones, and the fewer there are, the more its word "
        "should count.",
        reference="E. Ben-Baruch et al.: Distilling the knowledge in data pruning (2024, arXiv 2403.07854)",
    ),
    _data(
        name="dealrec",
        title="DEALRec",
        how_important="influence on a small model's loss, and size of the gradient in the large one",
        how_much="evenly from strata of the score, without the hardest tenth",
        when="`before_training`",
        repair="the training itself",
        claim="A recommender tuned on 2 per cent of the samples is better than on all, in 97 per cent less time.",
        reference="X. Lin et al.: Data-efficient fine-tuning for LLM-based recommendation (SIGIR 2024, "
        "arXiv 2401.17197)",
    ),
    _elsewhere(
        name="fedtiny",
        title="FedTiny",
        what="`weight`, of a network that many devices train together",
        how_important="`magnitude`; what comes back, by gradients that devices send",
        how_much="the best of some drawn shares, judged with norms adapted to the devices' data",
        when="before and during federated training, layer after layer",
        repair="the training itself",
        claim="Accuracy is 2.61 per cent higher with 95.91 per cent less computing and 94.01 per cent less memory.",
        reference="H. Huang et al.: Distributed pruning towards tiny neural networks in federated learning "
        "(ICDCS 2023, arXiv 2212.01977)",
    ),
    _elsewhere(
        name="human_gaussian",
        title="HumanGaussian",
        what="Gaussians of a scene",
        how_important="size and opacity",
        how_much="all above a size or below an opacity",
        when="in a last phase of training in which none are added",
        repair="the training itself",
        claim="Gaussians that float where nobody is are told by their size, and go.",
        reference="X. Liu et al.: HumanGaussian: text-driven 3D human generation with Gaussian splatting (CVPR 2024, "
        "arXiv 2311.17061)",
    ),
    _elsewhere(
        name="aptp",
        title="APTP",
        what="`channel` and `layer` of a model that draws from text, for each kind of prompt",
        how_important="gates that a router sets by the prompt",
        how_much="each of a few experts has a size of its own, with the budget as their mean",
        when="while router and gates learn",
        repair="`finetune` of each expert on its prompts, with `distill`",
        claim="Stable Diffusion 2.1, cut prompt by prompt, draws better than one small model for all; prompts with "
        "written text in them get the largest.",
        reference="A. Ganjdanesh et al.: Not all prompts are made equal: prompt-based pruning of text-to-image "
        "diffusion models (ICLR 2025, arXiv 2406.12042)",
    ),
    _elsewhere(
        name="optiprune",
        title="OptiPrune",
        what="tokens of a model that draws from text",
        how_important="likeness to the others of a patch, with some chance",
        how_much="a fixed fraction of each patch",
        when="while it draws, from a noise that was optimised before",
        repair="what goes is copied from the most alike that stays",
        claim="Pictures of two animals fit their prompts better than by other methods, at less computing.",
        reference="OptiPrune: boosting prompt-image consistency with attention-guided noise and dynamic token "
        "selection (2025, arXiv 2507.00789)",
    ),
    _elsewhere(
        name="mure",
        title="MURE",
        what="branches of a chain of thought in words and pictures",
        how_important="the score that a judge, another model, gives each",
        how_much="all but the best of each step",
        when="at each step in which a picture is drawn",
        repair="nothing",
        claim="Editing pictures by chains of which the weak branches go is better on three benchmarks.",
        reference="Z. Zou et al.: Beyond textual CoT: interleaved text-image chains with deep confidence reasoning for "
        "image editing (2025, arXiv 2510.08157)",
    ),
)
