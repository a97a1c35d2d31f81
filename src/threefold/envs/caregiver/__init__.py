"""A caregiver speaks with a simulated person living with dementia.

Research and training simulation, not for clinical use.
"""
