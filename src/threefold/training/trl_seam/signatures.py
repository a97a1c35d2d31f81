"""Which of TRL's private methods are overridden or called, and whether they are still what they were."""

from __future__ import annotations

import inspect

from trl import GRPOTrainer

_SIGNATURES = {
    "_generate": ["prompts"],
    "_calculate_rewards": ["inputs", "prompts", "completions", "completion_ids_list"],
    "_generate_and_score_completions": ["inputs"],
    "_generate_single_turn": [
        "prompt_ids",
        "images",
        "multimodal_fields",
        "num_generations",
        "has_tool_images",
    ],
    "_get_per_token_logps_and_entropies": [
        "model",
        "input_ids",
        "attention_mask",
        "logits_to_keep",
        "batch_size",
        "compute_entropy",
        "compute_aux_loss",
    ],
    "_compute_loss": ["model", "inputs"],
    "_load_from_checkpoint": ["resume_from_checkpoint"],
}
"""First parameters, after self, of the private methods that are overridden or called."""


def check_trl(trainer: type[GRPOTrainer] = GRPOTrainer) -> None:
    """Raise ImportError naming each private method of TRL whose signature is not the one this file was
    written for."""
    moved = []
    for name, expected in _SIGNATURES.items():
        method = getattr(trainer, name, None)
        found = list(inspect.signature(method).parameters)[1:] if method else None
        if found is None or found[: len(expected)] != expected:
            moved.append(f"{name}: expected {expected}, found {found}")
    if moved:
        import trl

        raise ImportError(
            f"TRL {trl.__version__} has moved what Threefold overrides (written for TRL 1.16): "
            + "; ".join(moved)
            + ". Install trl>=1.16,<1.17, or report the version."
        )
