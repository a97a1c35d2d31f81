"""Training: TRL's GRPO trainer with credit as a component. Glue only; no algorithm lives here."""
