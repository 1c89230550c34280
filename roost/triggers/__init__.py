"""What serves triggers: events come in from `sources`, and go to functions.

`ports` says what a source is and what it gets, `manager` keeps one task for every enabled trigger, `delivery` is the
way to the function, `status` what is known of each trigger.
"""
