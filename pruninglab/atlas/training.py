"""Systems in which training has a part: lottery tickets, and what is sparse from the start."""

from functools import partial

from pruninglab.atlas.system import System, combination

_ticket = partial(combination, topic="lottery tickets")
_sparse = partial(combination, topic="sparse from the start", task="digits-mlp")

SYSTEMS = (
    _ticket(
        "lottery",
        "The lottery ticket hypothesis",
        claim="Parts of 10 to 20 per cent of a network, set back to their first weights, reach its accuracy when they "
        "are trained alone, and sooner.",
        reference="J. Frankle, M. Carbin: The lottery ticket hypothesis (ICLR 2019, arXiv 1803.03635)",
        chapter=4,
        task="digits-mlp",
    ),
    _ticket(
        "stabilized_lottery",
        "Lottery tickets, rewound to an early step",
        claim="Set back to an early step rather than to the first, ResNet-50 has tickets of a fifth of its size.",
        reference="J. Frankle, G. K. Dziugaite, D. Roy, M. Carbin: Stabilizing the lottery ticket hypothesis (2019, "
        "arXiv 1903.01611)",
        chapter=4,
        task="digits-resnet",
    ),
    _ticket(
        "sign_tickets",
        "Deconstructing lottery tickets",
        claim="Of a ticket's first weights the signs are enough.",
        reference="H. Zhou, J. Lan, R. Liu, J. Yosinski: Deconstructing lottery tickets: zeros, signs, and the "
        "supermask (NeurIPS 2019, arXiv 1905.01067)",
        chapter=4,
        task="digits-mlp",
    ),
    _ticket(
        "lr_rewinding",
        "Learning-rate rewinding",
        claim="Setting back the learning rate alone does as well as setting back the weights too, and both beat tuning "
        "at a small rate.",
        reference="A. Renda, J. Frankle, M. Carbin: Comparing rewinding and fine-tuning in neural network pruning "
        "(ICLR 2020, arXiv 2003.02389)",
        chapter=4,
        task="digits-mlp",
        note="Between rounds half a training is done; the paper does a whole one.",
    ),
    _ticket(
        "layer_tickets",
        "When layers play the lottery",
        claim="Whole layers can be left out before training without loss, which saves time and up to 51 per cent of a "
        "training's emissions.",
        reference="A. Jordao et al.: When layers play the lottery, all tickets win at initialization (2023, "
        "arXiv 2301.10835)",
        chapter=4,
        task="cifar10-resnet20",
        note="Blocks that keep their input's shape; of those in digits-resnet one does. Chapter 4 builds a network.",
    ),
    System(
        name="bip",
        title="BiP",
        topic="lottery tickets",
        what="`weight`",
        how_important="a score that learns from the loss of the weights that training would find",
        how_much="`global`",
        when="at each step of a training that begins with a trained network",
        repair="the training itself",
        claim="One run of bi-level optimisation mostly finds better masks than rounds of pruning and training, two to "
        "seven times faster.",
        reference="Y. Zhang et al.: Advancing model pruning via bi-level optimization (NeurIPS 2022, arXiv 2210.04092)",
        chapter=4,
        task="digits-mlp",
    ),
    _sparse(
        "snip",
        "SNIP",
        claim="Connections chosen once, before training, by one batch's gradients leave extremely sparse networks that "
        "train to nearly the dense one's accuracy.",
        reference="N. Lee, T. Ajanthan, P. Torr: SNIP: single-shot network pruning based on connection sensitivity "
        "(ICLR 2019, arXiv 1810.02340)",
        chapter=5,
    ),
    _sparse(
        "iterative_snip",
        "Iterative SNIP",
        claim="Before training, many small steps of pruning leave networks trainable at sparsities where one step "
        "breaks them.",
        reference="P. de Jorge et al.: Progressive skeletonization: trimming more fat from a network at initialization "
        "(ICLR 2021, arXiv 2006.09081)",
        chapter=5,
        note="What is gone stays gone; in the paper's other variant, FORCE, it may come back.",
    ),
    _sparse(
        "grasp",
        "GraSP",
        claim="Before training 80 per cent of VGG-16's weights can go for 1.6 points on ImageNet, if the flow of "
        "gradients is kept.",
        reference="C. Wang, G. Zhang, R. Grosse: Picking winning tickets before training by preserving gradient flow "
        "(ICLR 2020, arXiv 2002.07376)",
        chapter=5,
    ),
    _sparse(
        "synflow",
        "SynFlow",
        claim="Without any data and up to 99.99 per cent sparsity, pruning little by little by the flow through each "
        "weight empties no layer.",
        reference="H. Tanaka et al.: Pruning neural networks without any data by iteratively conserving synaptic flow "
        "(NeurIPS 2020, arXiv 2006.05467)",
        chapter=5,
    ),
    _sparse(
        "random_erk",
        "Random pruning",
        claim="A random part of a wide ResNet-50, sized layer by layer, is more accurate on ImageNet than the dense "
        "network; the wider, the better chance does.",
        reference="S. Liu et al.: The unreasonable effectiveness of random pruning (ICLR 2022, arXiv 2202.02643)",
        chapter=5,
    ),
    _sparse(
        "set",
        "SET",
        claim="Sparse layers that exchange their smallest weights for random ones need far fewer parameters than full "
        "ones, at no loss of accuracy.",
        reference="D. Mocanu et al.: Scalable training of artificial neural networks with adaptive sparse connectivity "
        "(Nature Communications 2018, arXiv 1707.04780)",
        chapter=5,
        note="The fraction that is exchanged falls along a cosine, as in RigL.",
    ),
    _sparse(
        "rigl",
        "RigL",
        claim="With a fifth of its weights and five times the steps ResNet-50 reaches 77.2 per cent on ImageNet, "
        "against 76.8 of the dense one.",
        reference="U. Evci et al.: Rigging the lottery: making all tickets winners (ICML 2020, arXiv 1911.11134)",
        chapter=5,
    ),
    _sparse(
        "granet",
        "GraNet",
        claim="Pruning that also grows weights back by their gradient makes sparse training as good as training dense "
        "first, for ResNet-50 on ImageNet.",
        reference="S. Liu et al.: Sparse training via boosting pruning plasticity with neuroregeneration "
        "(NeurIPS 2021, arXiv 2106.10404)",
        chapter=5,
    ),
    _sparse(
        "sparse_pretraining",
        "The journey matters",
        claim="The mean number of weights during training predicts the loss, and pruning between a quarter and three "
        "quarters of it is best.",
        reference="T. Jin et al.: The journey matters: average parameter count over pre-training unifies sparse and "
        "dense scaling laws (ICLR 2025, arXiv 2501.12486)",
        chapter=5,
    ),
    System(
        name="sap",
        title="PQ index and SAP",
        topic="sparse from the start",
        what="`weight`",
        how_important="`magnitude`",
        how_much="as many as the PQ index of the weights says",
        when="rounds as of `lottery`, each of a size of its own",
        repair="`rewind`",
        claim="The index falls, rises and falls again as pruning goes on; rounds that heed it compress more at equal "
        "accuracy.",
        reference="E. Diao et al.: Pruning deep neural networks from a sparsity perspective (ICLR 2023, "
        "arXiv 2302.05601)",
        chapter=5,
        task="digits-mlp",
        start="untrained",
        note="The rounds end at the sparsity that is asked for; the paper's end after a number of them.",
    ),
    System(
        name="ap",
        title="AP, activate while pruning",
        topic="sparse from the start",
        what="`weight`",
        how_important="`magnitude`; then, of negative weights, how little training moved them",
        how_much="`global`",
        when="rounds of two halves, each from the first weights",
        repair="`rewind`",
        claim="Units that are never active become rarer, which is worth 3 to 4 points on CIFAR-10 and CIFAR-100.",
        reference="S. Liu et al.: AP: selective activation for de-sparsifying pruned neural networks (2022, "
        "arXiv 2212.06145)",
        chapter=5,
        task="digits-mlp",
        start="untrained",
    ),
    System(
        name="polarize",
        title="Polarised consensus",
        topic="sparse from the start",
        what="`channel`",
        how_important="gates that ask each input and learn to agree",
        how_much="what they leave open, held to a budget by the loss",
        when="within one training",
        repair="the training itself",
        claim="One training finds networks without half of the connections, for less than 1 per cent of accuracy.",
        reference="X. Zhi et al.: Learning a consensus sub-network with polarization regularization and one pass "
        "training (2023, arXiv 2302.10798)",
        task="digits-cnn",
        start="untrained",
        note="The loss is a reconstruction.",
    ),
)
