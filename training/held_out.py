"""What training never sees: the phrasings, values and tools by which `training.evaluate` measures."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from . import toolbox, words
from .toolbox import KNOWN, declare

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One conversation to be continued, and what its continuation must be."""

    kind: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    thinking: bool = True
    calls: list[tuple[str, Arguments]] | None = None
    """The exact calls, in order; an empty list: none may be made."""
    says: tuple[str, ...] = ()
    """The answer must hold one of these (letter case aside)."""
    shows: str = ""
    """`table`, `code`, `list` or `chinese`: the form the answer must have."""


_WEATHER = (
    "Could you tell me what the weather in {city} is like?",
    "How does the weather look in {city} right now?",
    "Any rain in {city}?",
    "I would like to know the weather in {city}.",
    "Please get me the current weather for {city}",
    "Hey, what is the weather in {city} this morning?",
    "I'm travelling to {city}, what weather should I expect?",
    "Give me an update on the weather in {city}",
    "Would you check how the weather is in {city}?",
)
_CALCULATE = (
    "Could you calculate {e} for me?",
    "Please compute the value of {e}",
    "I want to know what {e} is",
    "Can you work out {e}?",
    "Tell me what {e} gives",
    "Would you compute {e} please?",
    "What is the result of {e}?",
    "Quick question: {e}?",
)
_READ = (
    "Could you please open {p}?",
    "I want to see what is in {p}",
    "Please show me the file {p}",
    "What are the contents of {p}?",
    "Let me see {p}",
    "Could you read {p} to me?",
    "What is written in {p}?",
    "Please print the contents of {p}",
)
_TIME = (
    "Could you tell me what time it is?",
    "Do you have the time?",
    "What's the current time, please?",
    "Hey, what time is it right now?",
    "Please tell me the time",
    "Could you check the time for me?",
    "Hi, can I have the time?",
    "What time do we have?",
)
_TIMER = (
    "Could you set a timer for {m} minutes for {l}?",
    "Please start a {m} minute timer for the {l}",
    "I want a timer of {m} minutes for {l}",
    "Set me a {m} minute timer called {l}",
    "Put a timer on for {m} minutes, label {l}",
    "Can you set a {l} timer for {m} minutes?",
    "Remind me about the {l} in {m} minutes",
    "Start the timer: {m} minutes, {l}",
)
_TIMER_BARE = (
    "Could you set a timer for {m} minutes?",
    "Please start a timer of {m} minutes",
    "I want a {m} minute timer",
    "Could I get a {m} minute timer?",
    "Please count down {m} minutes for me",
)
_SEARCH = (
    "Could you search the web for {q}?",
    "I want to search for {q}",
    "Please look up {q} on the web",
    "Can you find pages about {q}?",
    "Do a search for {q}",
    "Would you google {q}?",
    "Please find out about {q} on the internet",
    "Search the internet: {q}",
)
_SEARCH_LIMIT = (
    "Could you search the web for {q} and give me {n} results?",
    "Please find {n} results for {q}",
    "I want {n} pages about {q}",
    "Search for {q}, limit {n}",
    "Get me {n} results for {q}",
    "Could you look up {q} and show {n} pages?",
)


def known_call(rng: random.Random, tool: str) -> tuple[str, Arguments]:
    """A held-out question for a known tool, with held-out values: its text and the exact arguments."""
    pick = rng.choice
    if tool == "get_weather":
        city = words.city(rng, held=True)
        return pick(_WEATHER).format(city=city), {"city": city}
    if tool == "calculate":
        e = words.expression(rng)
        return pick(_CALCULATE).format(e=e), {"expression": e}
    if tool == "read_file":
        p = words.path(rng, held=True)
        return pick(_READ).format(p=p), {"path": p}
    if tool == "current_time":
        return pick(_TIME), {}
    if tool == "set_timer":
        m = rng.randint(1, 240)
        if rng.random() < 0.25:
            return pick(_TIMER_BARE).format(m=m), {"minutes": m}
        label = words.label(rng, held=True)
        return pick(_TIMER).format(m=m, l=label), {"minutes": m, "label": label}
    q = words.phrase(rng, held=True, most=3)
    if rng.random() < 0.5:
        return pick(_SEARCH).format(q=q), {"query": q}
    n = rng.randint(1, 20)
    return pick(_SEARCH_LIMIT).format(q=q, n=n), {"query": q, "limit": n}


def _string(description: str = "") -> dict[str, Any]:
    return {"type": "string", "description": description} if description else {"type": "string"}


_INTEGER: dict[str, Any] = {"type": "integer"}


@dataclass(frozen=True)
class NewTool:
    """A tool of a kind people declare; `asks` are filled from `values`, in the order of the parameters."""

    declaration: dict[str, Any]
    asks: tuple[str, ...]
    values: tuple[str, ...] = field(default=())


NEW_TOOLS: tuple[NewTool, ...] = (
    NewTool(declare("reserve_restaurant", "Reserve a restaurant for some guests.", {"restaurant": _string(), "guests": _INTEGER}, ["restaurant", "guests"]),
            ("Reserve the restaurant {name} for {n} guests", "Please reserve a restaurant: {name}, {n} guests"), ("name", "n")),
    NewTool(declare("translate_sentence", "Translate a sentence into another language.", {"passage": _string(), "tongue": _string("The language")}, ["passage", "tongue"]),
            ("Translate the sentence {q} into {name}", "Can you translate {q} to {name}?"), ("q", "name")),
    NewTool(declare("email_colleague", "Email a colleague.", {"recipient": _string(), "subject": _string()}, ["recipient", "subject"]),
            ("Email my colleague {name} with the subject {q}", "Email {name}, subject {q}"), ("name", "q")),
    NewTool(declare("convert_currency", "Convert an amount of money between currencies.", {"amount": {"type": "number"}, "currency": _string()}, ["amount", "currency"]),
            ("Convert {n} to the currency {name}", "Please convert the amount {n} to {name}"), ("n", "name")),
    NewTool(declare("stream_album", "Stream an album.", {"artist": _string(), "shuffle": {"type": "boolean"}}, ["artist"]),
            ("Stream an album by {name}", "Please stream the album of {name}"), ("name",)),
    NewTool(declare("dim_lights", "Dim the lights in a room.", {"chamber": _string("The room"), "percentage": _INTEGER}, ["chamber", "percentage"]),
            ("Dim the lights in the {q} to {n}", "Dim the {q} lights, percentage {n}"), ("q", "n")),
    NewTool(declare("lookup_stock", "Look up the price of a stock.", {"ticker": _string()}, ["ticker"]),
            ("Lookup the stock {name}", "Can you lookup the stock price of {name}?"), ("name",)),
    NewTool(declare("hire_taxi", "Hire a taxi.", {"pickup": _string(), "destination": _string()}, ["pickup", "destination"]),
            ("Hire a taxi from {city} to {name}", "I need to hire a taxi, pickup {city}, destination {name}"), ("city", "name")),
    NewTool(declare("compress_video", "Compress a video file.", {"filename": _string(), "quality": _INTEGER}, ["filename", "quality"]),
            ("Compress the video {path} with quality {n}", "Please compress {path}, quality {n}"), ("path", "n")),
    NewTool(declare("roll_dice", "Roll some dice.", {"dice": _INTEGER, "faces": _INTEGER}, ["dice", "faces"]),
            ("Roll {n} dice with {m} faces", "Please roll the dice: {n} dice, {m} faces"), ("n", "m")),
    NewTool(declare("water_garden", "Water the garden.", {"liters": _INTEGER}, ["liters"]),
            ("Water the garden with {n} liters", "Can you water my garden, {n} liters?"), ("n",)),
    NewTool(declare("query_database", "Query a database.", {"statement": _string("An SQL statement")}, ["statement"]),
            ("Query the database for {q}", "Query the database: {q}"), ("q",)),
    NewTool(declare("summon_elevator", "Summon the elevator.", {}, None), ("Summon the elevator", "Please summon an elevator now"), ()),
    NewTool(declare("shuffle_deck", "Shuffle a deck of cards.", {}, None), ("Shuffle the deck", "Can you shuffle the deck of cards?"), ()),
    NewTool(declare("tweet_headline", "Tweet a headline.", {"headline": _string(), "hashtag": _string()}, ["headline"]),
            ("Tweet the headline {q}", "Tweet this headline: {q}"), ("q",)),
    NewTool(declare("heat_sauna", "Heat the sauna.", {"celsius": _INTEGER, "duration": _INTEGER}, ["celsius", "duration"]),
            ("Heat the sauna to {n} celsius, duration {m}", "Heat the sauna with celsius {n} and duration {m}"), ("n", "m")),
    NewTool(declare("feed_hamster", "Feed the hamster.", {"portion": _INTEGER, "snack": _string()}, ["portion", "snack"]),
            ("Feed the hamster with portion {n} and snack {q}", "Feed my hamster: portion {n}, snack {q}"), ("n", "q")),
    NewTool(declare("deploy_service", "Deploy a service.", {"service": _string(), "replicas": _INTEGER}, ["service", "replicas"]),
            ("Deploy the service {name} with {n} replicas", "Please deploy {name}, replicas {n}"), ("name", "n")),
    NewTool(declare("encrypt_archive", "Encrypt an archive.", {"cipher": _string()}, ["cipher"]),
            ("Encrypt the archive with cipher {name}", "Please encrypt my archive, cipher {name}"), ("name",)),
    NewTool(declare("vacuum_carpet", "Vacuum the carpet.", {"carpet": _string(), "intensity": _INTEGER}, ["carpet"]),
            ("Vacuum the carpet {name}", "Vacuum the carpet called {name}"), ("name",)),
    NewTool(declare("notarize_deed", "Notarize a deed.", {"deed": _string(), "witness": _string("Who attests it")}, ["deed", "witness"]),
            ("Notarize the deed {q} with witness {name}", "Please notarize my deed {q}, witness {name}"), ("q", "name")),
    NewTool(declare("rent_scooter", "Rent a scooter at a kiosk.", {"kiosk": _string(), "hours": _INTEGER}, ["kiosk", "hours"]),
            ("Rent a scooter at the kiosk {name} for {n} hours", "I want to rent a scooter, kiosk {name}, {n} hours"), ("name", "n")),
    NewTool(declare("prune_branches", "Prune the stale branches of a repository.", {"repository": _string()}, ["repository"]),
            ("Prune the branches of the repository {name}", "Could you prune branches in {name}?"), ("name",)),
    NewTool(declare("visit_dentist", "Arrange a visit to the dentist.", {"dentist": _string(), "weekday": _string()}, ["dentist", "weekday"]),
            ("Arrange a visit to the dentist {name}, weekday Friday", "I need to visit dentist {name} with weekday Monday"), ("name",)),
    NewTool(declare("plot_histogram", "Plot a histogram.", {"dataset": _string(), "bins": _INTEGER}, ["dataset", "bins"]),
            ("Plot a histogram of {path} with {n} bins", "Please plot the histogram: dataset {path}, bins {n}"), ("path", "n")),
    NewTool(declare("unlock_vault", "Unlock the vault.", {"passcode": _string()}, ["passcode"]),
            ("Unlock the vault with passcode {n}", "Please unlock the vault, the passcode is {q}"), ("n", "q")),
    NewTool(declare("transcribe_podcast", "Transcribe an episode of a podcast.", {"episode": _string()}, ["episode"]),
            ("Transcribe the podcast {path}", "Transcribe the podcast episode {q}"), ("path", "q")),
    NewTool(declare("resize_thumbnail", "Resize a thumbnail.", {"pixels": _INTEGER}, ["pixels"]),
            ("Resize the thumbnail to {n} pixels", "Resize my thumbnail, pixels {n}"), ("n",)),
    NewTool(declare("reboot_router", "Reboot the router.", {}, None), ("Reboot the router", "Can you reboot my router?"), ()),
    NewTool(declare("ping_hostname", "Ping a host on the network.", {"hostname": _string(), "retries": _INTEGER}, ["hostname", "retries"]),
            ("Ping the hostname {name} with {n} retries", "Ping {name}, retries {n}"), ("name", "n")),
)  # fmt: skip


def new_call(rng: random.Random, tool: NewTool) -> str:
    """A question for a tool never seen in training."""
    return rng.choice(tool.asks).format(
        name=words.name(rng, held=True), q=words.phrase(rng, held=True, most=2), n=rng.randint(2, 90), m=rng.randint(2, 90),
        city=words.city(rng, held=True), path=words.path(rng, held=True),
    )  # fmt: skip


def _ask(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def _among(
    rng: random.Random, needed: list[dict[str, Any]], others: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    names = {t["function"]["name"] for t in needed}
    tools = needed + [
        t
        for t in rng.sample(others, min(len(others), rng.randint(0, 4)))
        if t["function"]["name"] not in names
    ]
    rng.shuffle(tools)
    return tools


_SUMS = (
    "What does {a} + {b} equal?",
    "Please tell me {a} plus {b}",
    "Could you add {a} to {b}?",
    "{a} + {b} equals what?",
    "I need the sum of {a} and {b}",
    "hey, what is {a} + {b}?",
)
_ZH = ("你好呀，小模型！", "嗨，你好！", "您好，很高兴认识你", "你好，最近好吗？", "早上好呀", "哈喽，你好")
_TABLES = (
    "Could you show me a table of {t}?",
    "I would like a table with {t}",
    "Please draw a small table of {t}",
    "Put some {t} in a table",
    "Show {t} as a table",
    "A Markdown table of {t} please",
)
_CODES = (
    "Could you write me a Python function that {c}?",
    "I would like some Python code that {c}",
    "Please show me code that {c}",
    "Write a Python function which {c}",
    "Python code, please: a function that {c}",
)
_LISTS = (
    "Could you list {n} {t}?",
    "I would like a list of {n} {t}",
    "Please write down {n} {t}",
    "Give me {n} {t} as a list",
)
_NAMES = (
    ("Hello! My name is {x}.", "Do you remember what my name is?"),
    ("Hi there, I am {x}", "So what is my name?"),
    ("You may call me {x}.", "Can you tell me my name?"),
    ("I'm {x}, hello!", "What was my name again?"),
)
_BETWEEN = ("How are you?", "What is 12 + 30?", "Thanks!", "What can you do?")
_REPLIES = (
    "I am fine, thank you! How can I help you?",
    "12 + 30 = 42",
    "You are welcome! Anything else?",
    "I can do a few small things.",
)
_OUT_OF_REACH = (
    "Who painted the {q}?",
    "Describe the history of {city}.",
    "Could you explain {q} to me?",
    "What is the capital of {city}?",
    "Why do people like {q}?",
    "Write a novel about {q}.",
    "What is the tallest building in {city}?",
    "How does {q} work?",
)
_ABOUT = (
    ("How can I leave this chat?", "/quit"),
    ("Which command turns thinking off?", "/think off"),
    ("How do I make you think again?", "/think"),
    ("How do I load a bigger model?", "--model"),
    ("Please tell me how to start over", "/clear"),
    ("How can I stop you in the middle of an answer?", "ctrl-c"),
    ("How do I give you my own tools?", "--tools"),
    ("Can I get the output as JSON?", "--json"),
    ("So what is glmchat good for?", "terminal"),
    ("How do I list the available commands?", "/help"),
)
_GREETINGS = (
    "Hello, nice to meet you!",
    "Hey you!",
    "Good day!",
    "Hi, how are you doing today?",
    "Hello hello",
)


def cases(rng: random.Random, count: int) -> list[Case]:
    """`count` cases of each kind, thinking on and off in turn where the kind does not fix it."""
    out: list[Case] = []
    known = [make(random.Random(i)) for i, make in enumerate(KNOWN.values())]
    fresh = [t.declaration for t in NEW_TOOLS]
    for i in range(count):
        on = i % 2 == 0
        tool = list(KNOWN)[i % len(KNOWN)]
        text, arguments = known_call(rng, tool)
        needed = KNOWN[tool](rng)
        others = [t for t in known if t["function"]["name"] != tool]
        out.append(Case("known tool", _ask(text), _among(rng, [needed], others), on, [(tool, arguments)]))

        new = NEW_TOOLS[i % len(NEW_TOOLS)]
        required = new.declaration["function"]["parameters"].get("required", [])
        others = [t for t in fresh + known if t is not new.declaration]
        out.append(
            Case(
                "new tool",
                _ask(new_call(rng, new)),
                _among(rng, [new.declaration], others),
                on,
                [(new.declaration["function"]["name"], dict.fromkeys(required))],
            )
        )

        a, b = words.city(rng, held=True), words.city(rng, held=True)
        text = rng.choice(
            (
                "What is the weather in {a} and in {b}?",
                "Please tell me the weather in {a} and {b}",
                "How is the weather in {a} and {b}?",
            )
        ).format(a=a, b=b)
        out.append(
            Case(
                "two calls",
                _ask(text),
                _among(rng, [known[0]], known[1:]),
                on,
                [("get_weather", {"city": a}), ("get_weather", {"city": b})],
            )
        )

        city = words.city(rng, held=True)
        degrees, sky = rng.randint(-10, 40), rng.choice(("sunny", "cloudy", "snow", "fog"))
        call = {
            "role": "assistant",
            "content": "",
            "reasoning_content": f"I call get_weather with city: {city}" if on else "",
            "tool_calls": [
                {"type": "function", "function": {"name": "get_weather", "arguments": {"city": city}}}
            ],
        }
        out.append(
            Case(
                "tool result told",
                [
                    *_ask(f"What is the weather in {city}?"),
                    call,
                    {"role": "tool", "content": f"{degrees}°C, {sky}"},
                ],
                [known[0]],
                on,
                [],
                (f"{degrees}°C, {sky}",),
            )
        )

        x, y = rng.randint(10, 99), rng.randint(10, 99)
        for thinking in (True, False):
            out.append(
                Case(
                    "sum, thinking" if thinking else "sum, not thinking",
                    _ask(rng.choice(_SUMS).format(a=x, b=y)),
                    None,
                    thinking,
                    [],
                    (f"= {x + y}",),
                )
            )

        out.append(Case("Chinese greeting", _ask(_ZH[i % len(_ZH)]), None, on, [], shows="chinese"))
        topic = rng.choice(list(toolbox.talk.TOPICS))
        out.append(Case("table", _ask(rng.choice(_TABLES).format(t=topic)), None, on, [], shows="table"))
        out.append(
            Case(
                "code",
                _ask(rng.choice(_CODES).format(c=rng.choice(list(toolbox.talk.CODE)))),
                None,
                on,
                [],
                ("def ",),
                shows="code",
            )
        )
        out.append(
            Case(
                "list",
                _ask(rng.choice(_LISTS).format(n=rng.randint(2, 5), t=topic)),
                None,
                on,
                [],
                shows="list",
            )
        )

        name = words.name(rng, held=True)
        tell, ask = rng.choice(_NAMES)
        middle: list[dict[str, Any]] = []
        if rng.random() < 0.5:
            j = rng.randrange(len(_BETWEEN))
            middle = [*_ask(_BETWEEN[j]), {"role": "assistant", "content": _REPLIES[j]}]
        out.append(
            Case(
                "name recalled",
                [
                    *_ask(tell.format(x=name)),
                    {"role": "assistant", "content": f"Nice to meet you, {name}!"},
                    *middle,
                    *_ask(ask),
                ],
                None,
                on,
                [],
                (name,),
            )
        )

        text = rng.choice(_OUT_OF_REACH).format(
            q=words.phrase(rng, held=True, most=2), city=words.city(rng, held=True)
        )
        out.append(Case("beyond me", _ask(text), None, on, [], ("beyond me",)))
        about, wanted = _ABOUT[i % len(_ABOUT)]
        out.append(Case("about glmchat", _ask(about), None, on, [], (wanted,)))
        out.append(
            Case(
                "greeting with tools",
                _ask(_GREETINGS[i % len(_GREETINGS)]),
                _among(rng, [rng.choice(fresh)], known),
                on,
                [],
                ("hello", "hi", "fine", "nice"),
            )
        )
    return out
