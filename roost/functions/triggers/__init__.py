"""What starts a function by itself: triggers, their types and their settings.

`book` creates, shows and changes them; `kinds` says which types there are; a module per family checks the settings of
its types. What serves them is `roost.triggers`, above.
"""
