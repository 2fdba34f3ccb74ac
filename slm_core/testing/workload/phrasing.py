"""How requests are worded, pool by pool; no wording stands in two pools.

A clause names a parameter by its words and gives its value; ``{label}`` and ``{value}`` are
filled in. A greeting makes the nano-teacher chatty, as it does with larger models.
"""

from __future__ import annotations

from slm_core.testing.workload.pools import Pool

ROLES: dict[Pool, tuple[str, ...]] = {
    "pretrain": (
        "You are an assistant with tools.",
        "You help the back office.",
        "You are the dispatcher of a small company.",
        "You turn requests into actions.",
        "You work for the service desk.",
        "You route requests to functions.",
        "As the operations bot, act on what people ask.",
        "Your job is to pick a function and fill it in.",
        "You support a team of planners.",
        "You are a careful clerk.",
        "You answer for the front desk of a hotel.",
        "You are part of a pipeline.",
        "You serve an internal platform.",
        "You look after bookings.",
        "Requests come from customers; act on them.",
        "You manage equipment.",
    ),
    "traffic": (
        "You are the intake agent of Northwind Logistics.",
        "You take orders at the Harbour Street counter.",
        "You are the night shift of a control room.",
    ),
    "test": (
        "You are the concierge of Meridian House.",
        "You handle tickets at Alder Works.",
        "You are a field coordinator.",
    ),
}

GREETINGS: dict[Pool, tuple[str, ...]] = {
    "pretrain": (
        "Hello!",
        "Hey!",
        "Hi there!",
        "Hello team!",
        "Hi all!",
        "Thanks in advance!",
        "Hey folks!",
        "Hi again!",
        "Welcome back!",
        "Happy Monday!",
        "What a day!",
    ),
    "traffic": ("Good morning!", "Hiya!", "Greetings everyone!"),
    "test": ("Good evening!", "Howdy!", "Salutations, friends!"),
}

OPENERS: dict[Pool, tuple[str, ...]] = {
    "pretrain": (
        "Please {task}",
        "Can you {task}",
        "I need you to {task}",
        "Go ahead and {task}",
        "Now {task}",
        "We want to {task}",
        "Could you {task} for me",
        "It is time to {task}",
        "{task}",
        "My request: {task}",
        "Next, {task}",
        "Help me {task}",
        "The customer asks us to {task}",
        "Let us {task}",
        "Quickly {task}",
        "Someone has to {task}",
        "You should {task}",
        "Try to {task}",
        "As agreed, {task}",
        "Before noon, {task}",
    ),
    "traffic": (
        "Would you mind helping to {task}",
        "We would like to {task} today",
        "Kindly {task}",
        "There is a need to {task}",
        "Boss says {task}",
        "First of all, {task}",
    ),
    "test": (
        "I'd be glad if you could {task}",
        "Get ready to {task}",
        "The plan says we {task}",
        "Do {task} right away",
        "One more job: {task}",
        "It would be great to {task}",
    ),
}

CLAUSES: dict[Pool, tuple[str, ...]] = {
    "pretrain": (
        "{label} {value}",
        "{label}: {value}",
        "{label} is {value}",
        "with {label} {value}",
        "{label} = {value}",
        "set {label} to {value}",
        "the {label} should be {value}",
        "use {value} as {label}",
        "{value} as the {label}",
        "{label} of {value}",
        "and {label} equals {value}",
        "take {value} for {label}",
        "where {label} stays {value}",
        "its {label} must read {value}",
        "{label} ({value})",
        "my {label} would be {value}",
        "put {value} under {label}",
        "{label} - {value}",
        "having {label} {value}",
        "keep {label} at {value}",
        "we want {value} in {label}",
        "{label} will be {value} this time",
        'the {label} "{value}"',
        "enter {value} into {label}",
    ),
    "traffic": (
        "give it {label} {value}",
        "{label} should say {value}",
        "that has {value} for its {label}",
        "note {label}: {value}",
        "choose {value} as our {label}",
        "{label} becomes {value}",
    ),
    "test": (
        "make the {label} {value}",
        "{value} goes in the {label}",
        "let {label} be {value}",
        "on {label} write {value}",
        "fill {label} with {value}",
        "{label} ought to be {value}",
    ),
}

JOINERS = (", ", ", ", "; ", ", and ")
"""Between clauses; punctuation belongs to every pool, so that a clause has an end."""

CHATTER: dict[Pool, tuple[str, ...]] = {
    "pretrain": (
        "I am in a hurry",
        "this is for a friend",
        "sorry for the short notice",
        "we talked about it last week",
        "the weather is bad today",
        "do not ask me why",
    ),
    "traffic": ("the client is waiting on the line", "it came up in the stand-up"),
    "test": ("everyone here is counting on it", "that was decided on the train"),
}
"""Remarks that mean nothing and must not end up in an argument."""
