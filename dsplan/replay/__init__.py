"""replay: what others published of DeepSpeed's memory, held against the planner.

The cases are data (``cases.json``); every other number is the planner's. Where DeepSpeed or torch has changed since a
run was made, ``eras`` walks the run by the rules of its day and names what each changed rule is worth.
"""
