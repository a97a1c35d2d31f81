"""The skill bank: written by a creator, tested inside the GRPO group, kept or restored exactly.

Implements ReSkill (arXiv 2606.01619). See docs/skills.md. Nothing here imports torch, transformers or TRL.
"""
