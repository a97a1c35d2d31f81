"""Household games on ALFWorld's engine: find things in rooms, clean, heat or cool them, put them away."""
