"""Side-by-side measurements: plain TRL and Threefold in one process, taking turns, on the same work.

A bench is a module with `measure(options) -> list[Cell]`; `record.py` holds what comes out, with the machine
it was measured on, and compares it with a baseline; `page.py` makes tables of it. `threefold bench` runs
them.

Seconds hold for one machine at one time. What is compared between machines and days is the ratio of arms that
took turns.
"""
