"""Runs the G episodes of each task side by side against an environment and a sampler, tokens in and tokens
out."""
