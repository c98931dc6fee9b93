"""The statements, each with its source, its figure, and the rule that was fixed before measuring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tests.benchmarks import claims_figures as figures
from tests.benchmarks.claims_measure import (
    ABLATION_ROWS,
    CURVE_ROWS,
    DEFAULT_METHOD,
    GRADIENT_ROWS,
    HIES_WEIGHTS,
    ITERATIVE_ROWS,
    RANDOM_ORDERS,
    WEIGHT_ROWS,
)  # fmt: skip
from tests.benchmarks.claims_retrain import TRAIN_ROWS
from tests.benchmarks.claims_rules import FAILS, HOLDS, OPEN, POINT, Rule, at_least, at_most, between, positive

CURVE = f"mean accuracy of the pruning curve (10 to 90 % of the heads removed, {CURVE_ROWS} test rows)"


@dataclass(frozen=True)
class Statement:
    """A statement about attention heads.

    Attributes:
        title: the statement in a few words.
        claim: what was published or observed.
        source: paper and section, or guide.
        measured: what the figure is, and on how many rows.
        unit: of the figure.
        advice: what to do, by verdict.
    """

    title: str
    claim: str
    source: str
    measured: str
    unit: str
    figure: figures.Figure
    rule: Rule
    advice: Mapping[str, str]


def advice(holds: str, fails: str, undecided: str) -> dict[str, str]:
    """Return the advice by verdict."""
    return {HOLDS: holds, FAILS: fails, OPEN: undecided}


MICHEL = "Michel, Levy, Neubig 2019"
PRASANNA = "Prasanna, Rogers, Rumshisky 2020"
STATEMENTS = (
    Statement(
        "40 % of the heads can be removed for about a point",
        "With iterative pruning by gradient, 40 % of the heads of BERT can be removed without a noticeable loss "
        "(BERT-base, MultiNLI).",
        f"{MICHEL}, section 4.2 and figure 3b",
        f"accuracy with all heads minus accuracy without 40 % of them, all test rows; the order is the paper's "
        f"(gradient with layer norm, scored again after each tenth, {ITERATIVE_ROWS} training rows)",
        "points",
        figures.forty_percent,
        at_most(1.5 * POINT, "1.5 points, which is about one point"),
        advice(
            "Removing 40 % is a safe first try. Still look at the pruning curve of your own model before you choose.",
            "Do not remove 40 % without looking: on your data the loss can be larger than a point.",
            "Choose the share by the pruning curve of your own run, not by this number.",
        ),
    ),
    Statement(
        "Accuracy drops sharply after 60 %",
        "The curve is flat up to about 40 % and falls sharply after about 60 % of the heads.",
        f"{MICHEL}, section 4.2 and figure 3b",
        f"points lost per tenth of the heads from 60 to 90 %, minus twice those lost per tenth up to 60 % (same order, "
        f"{CURVE_ROWS} test rows)",
        "points",
        figures.sharper,
        positive(0.0, "the loss per tenth does not even double"),
        advice(
            "Expect a cliff: stop well before 60 %, or train the pruned model again (`finetune prune --heal`).",
            "The loss grows evenly; there is no natural share at which to stop.",
            "Look for the bend in your own curve.",
        ),
    ),
    Statement(
        "Few single heads matter alone",
        "Most heads are redundant given the rest of the model: only 8 of 96 (8 %) had a significant effect alone, "
        "and half of these were better removed (encoder of a translation model).",
        f"{MICHEL}, section 3.2 and table 1",
        "share of the heads whose removal alone changes the accuracy significantly (McNemar's exact test at 0.05 after "
        f"Holm's correction for all heads, {ABLATION_ROWS} test rows)",
        "%",
        figures.single_heads,
        at_most(10, "10 %"),
        advice(
            "Do not read much into the accuracy change of one head: with a few hundred rows it is nearly always noise.",
            "Single heads matter in such models: use `leave_one_out: true`.",
            "Read single removals only with their corrected p-values.",
        ),
    ),
    Statement(
        "Before training, good sub-networks beat random ones",
        "Sub-networks of the same size that are sampled from the rest of the model perform worse than the good one.",
        f"{PRASANNA}, abstract (b)",
        "test accuracy of the fine-tuned model with the less important half of its heads masked, minus the same with a "
        "random half masked",
        "points",
        figures.retrained_difference("good", "random", "masked"),
        positive(),
        advice(
            "If you prune without training, the order matters: rank the heads first.",
            "At half of the heads, the order hardly matters here.",
            "Compare your order with random orders (`head_importance.random_orders`) before you trust it.",
        ),
    ),
    Statement(
        "After training, random sub-networks are as good",
        "For most GLUE tasks, good sub-networks can be trained to about the performance of the full model, but so can "
        "random ones of the same size.",
        f"{PRASANNA}, section 4.2, and the authors' article in The Gradient; heads and feed-forward parts",
        "test accuracy of the good sub-network minus that of a random one, both with half of the heads, trained from "
        f"the pretrained weights with the default recipe on {TRAIN_ROWS:,} training rows",
        "points",
        figures.retrained_difference("good", "random"),
        between(-POINT, POINT, "-1 and 1 point"),
        advice(
            "If you train after pruning anyway, do not pay for a good ranking, and do not read the surviving heads as "
            "the ones that the task needs.",
            "The choice of heads matters even if you train afterwards: rank them.",
            "A ranking is cheap compared with training, so use one; but do not read the surviving heads as the ones "
            "that the task needs.",
        ),
    ),
    Statement(
        "Even the worst sub-network can be trained",
        'With structured pruning "even the worst possible subnetworks remain highly trainable".',
        f"{PRASANNA}, abstract and section 4.3",
        "test accuracy of the bad sub-network (the less important half of the heads is kept), trained in the same way, "
        "in % of that of the full model trained on the same rows; the paper counts 90 % as a good sub-network",
        "%",
        figures.share_of_full,
        at_least(90, "90 %"),
        advice(
            "Importance in the fine-tuned model says little about what the pretrained weights of a head can learn.",
            "Heads that look unimportant are also worse to train: keep the important ones.",
            "Do not rely on it; keep the important heads.",
        ),
    ),
    Statement(
        "Confidence ranks below random order",
        "Ours. Voita et al. expect the opposite: heads that give most of their attention to one token should be "
        "important (for translation).",
        "[head-analysis](head-analysis.md); Voita et al. 2019, section 4",
        f"{CURVE} of random orders (mean of {RANDOM_ORDERS}) minus that of the order by confidence",
        "points",
        figures.curve_difference("random", "confidence"),
        positive(),
        advice(
            "Never remove heads because their attention is spread out.",
            "Confidence is not worse than chance here; a gradient is still cheap and better founded.",
            "Do not use confidence to choose heads: no advantage over chance is shown.",
        ),
    ),
    Statement(
        "Entropy ranks below random order",
        "Ours: removing the heads with the most spread attention first is worse than removing heads at random.",
        "[head-analysis](head-analysis.md); entropy as in Clark et al. 2019, section 3.3",
        f"{CURVE} of random orders (mean of {RANDOM_ORDERS}) minus that of the order by entropy",
        "points",
        figures.curve_difference("random", "entropy"),
        positive(),
        advice(
            "Never remove heads because the entropy of their attention is high.",
            "Entropy is not worse than chance here; a gradient is still cheap and better founded.",
            "Do not use entropy to choose heads: no advantage over chance is shown.",
        ),
    ),
    Statement(
        "HIES is better than the gradient",
        "A weighted sum of gradient importance and attention entropy prunes better than the gradient: at 50 % of the "
        "heads of BERT-base, 81.4 against 79.5 on average over eight tasks.",
        "Choi et al. 2025 (arXiv 2510.13832), equations 1 and 2, table 1",
        f"{CURVE} of HIES minus that of the gradient, both from {GRADIENT_ROWS} training rows; the weight of the "
        f"gradient is the best of {', '.join(map(str, HIES_WEIGHTS))} on {WEIGHT_ROWS} validation rows of each model",
        "points",
        figures.curve_difference("hies", "gradient"),
        positive(),
        advice(
            "Adding the entropy is worth its extra forward pass.",
            "Adding the entropy does not pay here, although its weight is tuned for each model.",
            "The entropy may help or hurt; there is no reason to add it.",
        ),
    ),
    Statement(
        "The default order beats the gradient with layer norm",
        f"Ours: the default method (`{DEFAULT_METHOD}`) ranks better than `gradient_layer_norm`.",
        "[head-analysis](head-analysis.md)",
        f"{CURVE} of the default order (all of its 1,024 row passes) minus that of `gradient_layer_norm` "
        f"({GRADIENT_ROWS} row passes)",
        "points",
        figures.curve_difference(DEFAULT_METHOD, "gradient_layer_norm"),
        positive(),
        advice(
            "Use the default.",
            "Where time is short, `gradient_layer_norm` is as good.",
            "Use the default if you can afford it; `gradient_layer_norm` costs a fraction of it.",
        ),
    ),
    Statement(
        "The default order beats random order",
        f"Ours: the default method (`{DEFAULT_METHOD}`) ranks better than chance.",
        "[head-analysis](head-analysis.md)",
        f"{CURVE} of the default order minus that of random orders (mean of {RANDOM_ORDERS})",
        "points",
        figures.curve_difference(DEFAULT_METHOD, "random"),
        positive(),
        advice(
            "A ranking is worth making. The head analysis of each run compares its order with random ones.",
            "Do not prune by the ranking.",
            "Look at the random orders in the report of your run before you prune by the ranking.",
        ),
    ),
    Statement(
        "Normalizing per layer helps",
        "Gradient importance should be divided by the L2 norm of its layer.",
        f"{MICHEL}, section 4.1, after Molchanov et al. 2017",
        f"{CURVE} of `gradient_layer_norm` minus that of `gradient`, from the same {GRADIENT_ROWS} training rows",
        "points",
        figures.curve_difference("gradient_layer_norm", "gradient"),
        positive(),
        advice(
            "Prefer `gradient_layer_norm` to `gradient`.",
            "Choose either: the normalization gains less than a point.",
            "Try both and keep the one with the better curve on validation rows.",
        ),
    ),
    Statement(
        "Rankings of different seeds agree only partly",
        "Ours: the same recipe with another seed gives a related but different ranking. Prasanna et al. also find that "
        "good sub-networks differ between seeds.",
        f"[head-analysis](head-analysis.md); {PRASANNA}, section 5.1",
        "Kendall's tau between the default orders of two seeds, mean over the pairs of seeds; one value per data set",
        "",
        figures.between_seeds(DEFAULT_METHOD),
        between(0, 0.8, "0 and 0.8"),
        advice(
            "A ranking belongs to one trained model: rank again after training again, and report several seeds.",
            "The ranking can be taken over from one seed to another, or has nothing in common: see the figure.",
            "Rank each trained model on its own.",
        ),
    ),
    Statement(
        "The absolute value per batch changes the ranking more than other rows do",
        "Ours: public code takes the absolute value of the gradient of a whole batch, so that rows cancel and the "
        "ranking depends on the batch size.",
        f"[head-analysis](head-analysis.md); the formula takes it per example ({MICHEL}, section 4.1)",
        "Kendall's tau between the rankings from two halves of the rows, minus tau between the ranking per row and "
        f"that per batch of 32, from the same {GRADIENT_ROWS} rows",
        "",
        figures.batch_against_rows(32),
        positive(0.0, "the batch changes it less than other rows do"),
        advice(
            "Take the absolute value per example. Compare rankings of other tools only at the same batch size.",
            "The batch size matters less than the choice of rows.",
            "Take the absolute value per example: it costs the same.",
        ),
    ),
    Statement(
        "The absolute value per batch prunes worse",
        "Ours: the ranking per example is also the better one.",
        "[head-analysis](head-analysis.md)",
        f"{CURVE} of `gradient` minus that of the same with the absolute value per batch of 32 rows",
        "points",
        figures.curve_difference("gradient", "gradient_batch_32"),
        positive(),
        advice(
            "Take the absolute value per example.",
            "The two rankings differ, but prune equally well within a point.",
            "The two rankings differ; which one prunes better is open.",
        ),
    ),
    Statement(
        "Many heads are better than one",
        "The usual explanation of multi-head attention: several heads learn several relations, so they are better.",
        "examined in [one-head-or-many](one-head-or-many.md)",
        "test accuracy of a one-layer classifier trained from scratch with 16 heads of 4, minus that with 1 head of 64",
        "points",
        figures.small_difference(16, 1),
        positive(),
        advice(
            "Start with several heads.",
            "For a small classifier from scratch, take the cheapest number of heads.",
            "For a small classifier from scratch, decide by experiment with several seeds.",
        ),
    ),
)
