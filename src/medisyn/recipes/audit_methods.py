"""The methods text of `medisyn audit`: every choice that its numbers depend on, and what they do not prove."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medisyn.recipes.audit import Audit
    from medisyn.recipes.copy_search import CopySearch
    from medisyn.recipes.stack_search import StackSearch


def methods(found: Audit, search: CopySearch | StackSearch) -> list[str]:
    """Paragraphs that a paper can take over."""
    from medisyn.recipes.stack_search import StackSearch

    text = [
        *(_of_stacks(found, search) if isinstance(search, StackSearch) else _of_images(found, search)),
        _calibration(found, search),
    ]
    if found.attack is not None:
        text.append(_attack(found))
    text.append(
        "What this does not prove. No copy found is no guarantee of privacy: the search sees what its features see, "
        f"the training set may hold the same patient in another {search.kind[:-1]}, and a model can leak without "
        f"copying. Only training with differential privacy gives a formal guarantee. The figures hold for these "
        f"{search.kind}, not for others from the same model."
    )
    return text


def _of_images(found: Audit, search: CopySearch) -> list[str]:
    settings = found.search
    return [
        f"Test of MediSyn v2 (section 4.3.4). For each image the training image nearest by cosine of the features of "
        f"{search.extractor.id} was found by exact search among those of the same specialty and image type. The "
        f"training image was brought to the size of the generated one (bicubic; sides cut to a multiple of 4), both "
        f"were divided into 4 x 4 patches, and the distance is the largest root mean square difference of a patch over "
        f"255 (the paper: 16 patches of 128 x 128 at 512 x 512). At or below 0.15 a pair counts as a possible "
        f"reproduction. The paper used BiomedCLIP, one neighbour and no mirroring.",
        f"Wider search. Candidates were the {settings.neighbours} nearest by the encoder, in each mirroring the "
        f"{settings.edge_neighbours} nearest by edges (gradients of a 16 x 16 grey copy, by cosine), and in each "
        f"mirroring the nearest 64-bit perceptual hash of the whole training set, of any kind. Each candidate was "
        f"compared in pixels by patch distance and by edge similarity: the correlation of the gradients of 32 x 32 and "
        f"64 x 64 grey copies, largest over shifts of up to 1/16 of the side, mean of both. Edge similarity withstands "
        f"changes of brightness, recompression and small shifts; crops, rotations and re-drawings escape both.",
    ]


def _of_stacks(found: Audit, search: StackSearch) -> list[str]:
    from medisyn.recipes.stack_search import FLAT, SIDE

    settings, one = search.settings, search.kind[:-1]
    pictures = "slices" if search.kind == "volumes" else "frames"
    window = (
        f"HU {settings.window[0]:g} to {settings.window[1]:g} became grey levels 0 to 255. "
        if search.kind == "volumes"
        else ""
    )
    return [
        f"Nearest {one}. MediSyn v2 tested single images only (section 4.3.4); this carries its test over to "
        f"{search.kind} and is ours, so no published figure compares. Of each {one} {settings.pictures} {pictures} at "
        f"even distances were looked at, of each training {one} three times as many. {window}Pictures above "
        f"{SIDE} pixels were reduced to that longest side, and flat ones (standard deviation below {FLAT:g} grey "
        f"levels) left out. The nearest training {one} of the same specialty and image type is that with the largest "
        f"mean cosine of the closest {settings.share:.0%} of the {pictures}, each with its best partner there, in the "
        f"features of {search.extractor.id} (an encoder of single images: it sees no motion and no depth). The "
        f"distance is the largest patch distance among these {settings.share:.0%}: 4 x 4 patches, root mean square "
        f"difference over 255. At or below 0.15 a pair counts as a possible reproduction.",
        f"Wider search. Candidates were the {settings.neighbours} nearest training {search.kind} by the encoder, in "
        f"each mirroring of the {pictures} the {settings.edge_neighbours} nearest by edges (gradients of a 16 x 16 "
        f"grey copy) and the nearest by perceptual hash, all by the closest {settings.share:.0%}. Each was compared in "
        f"pixels with the {pictures} of it that are nearest by the encoder or by edges. Other viewing planes, rotated "
        f"or re-ordered {search.kind} and copies of less than {settings.share:.0%} of the {pictures} escape it.",
    ]


def _calibration(found: Audit, search: CopySearch | StackSearch) -> str:
    from medisyn.recipes.stack_search import LEAVE_ONE_OUT

    policy, kind = found.policy, search.kind
    drawn = f"at most {found.search.held_out}, seed {found.search.seed}"
    alone = (
        f" No held-out {kind} were given: each training one stands for a held-out one and is compared with those of "
        f"other patients."
        if search.null == LEAVE_ONE_OUT
        else ""
    )
    return (
        f"Calibration. The same figures of {len(found.held_out)} held-out real {kind} ({search.null}, {drawn}) are the "
        f"null distribution.{alone} One is closer than the cut when its conformal p value, (1 + sum over K held-out "
        f"patients of the share of their {kind} as close) / (K + 1), is at most {policy.alpha:g}, or 1 / (K + 1) where "
        f"that is larger and at most {policy.coarsest:g}. A real {kind[:-1]} of a new patient meets that with at most "
        f"this probability if that patient is exchangeable with the K. Kinds with fewer patients are pooled; where the "
        f"pool is too small, the limit stands alone. Three measures may withhold up to three times that share of "
        f"innocent {kind}. Policy. Limits: patch distance {policy.distance:g}, edge similarity {policy.similarity:g}, "
        f"hash bits {policy.bits}. The set fails where the upper bound of the share withheld is above "
        f"{policy.max_share:g}, or the upper end of the attack's AUC above {policy.max_membership_auc:g}"
        f"{'' if policy.require_membership else ' (where the attack was run)'}."
    )


def _attack(found: Audit) -> str:
    from medisyn.recipes.corpus_images import stratum_of

    assert found.attack is not None
    attack, result, kind = found.attack, found.attack.result, found.kind
    told = "reports" if kind == "volumes" else "captions"
    if list(attack.classes) == [stratum_of({})]:
        matching = f"drawn at random, since the folders name no kinds of {kind},"
    else:
        matching = f"as many of each of {len(attack.classes)} classes,"
    trained = "this corpus's training split" if kind == "images" else f"the training {kind}"
    between = "the splits" if kind == "images" else "the folders"
    return (
        f"Membership attack. {result.members} training and {result.non_members} held-out {kind}, {matching} "
        f"were scored by minus the denoising loss of {attack.model} with their own {told}, averaged over timesteps and "
        f"noises drawn once for all {kind} (network in {attack.dtype}). "
        f"{f'{attack.reading}. ' if attack.reading else ''}The interval of the AUC is by {result.auc_interval.method}; "
        f"that of the share takes the threshold as given. What confounds it: the attack assumes that the model was "
        f"trained on {trained} and on none of the held-out {kind}; a difference in difficulty between {between} (other "
        f"patients, devices) moves the AUC without any memory; mirrored or otherwise augmented training weakens it; "
        f"duplicates across {between} do too."
    )
