"""Tool declarations, the questions that call them, and the turns that follow.

Six tools are known well (`KNOWN`); thousands more are made up, so that the model learns to read a
declaration: to pick a tool by the words it shares with the question, and to copy names and values.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import talk, words
from .talk import Messages, assistant, sloppy, spin, user

Arguments = dict[str, Any]

NOT_RUN = "This call was not run."
"""What glmchat itself answers to a call when the person goes on without running it."""

NO_TOOL = "I have no tool for that. Declare one in a JSON file and start with `--tools FILE`."


@dataclass(frozen=True)
class Ask:
    """One question for one tool: the words, the arguments they carry, and how the answer is told."""

    text: str
    tool: str
    arguments: Arguments
    result: str
    told: str

    @property
    def subject(self) -> str:
        """What a line about this call begins with when several calls are told together."""
        return str(next(iter(self.arguments.values()), self.tool))


def declare(
    name: str, description: str, properties: dict[str, Any], required: list[str] | None = None
) -> dict[str, Any]:
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        parameters["required"] = required
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


def _described(rng: random.Random, kind: str, text: str) -> dict[str, Any]:
    return {"type": kind, "description": spin(rng, text)} if rng.random() < 0.5 else {"type": kind}


def flat(result: str) -> str:
    """A flat JSON object as `key: value, key: value`; other text as it is."""
    if not result.startswith("{"):
        return result
    return ", ".join(f"{k}: {v}" for k, v in json.loads(result).items())


# --- the six known tools --------------------------------------------------------------------------------

KNOWN: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "get_weather": lambda rng: declare(
        "get_weather",
        spin(rng, "{Get the weather of a city.|Current weather in a city.|Look up the weather.|Returns the weather for a given city|Get the current weather|Weather report for a city}"),
        {"city": _described(rng, "string", "{City name|The city|Name of the city}")}, ["city"]),
    "calculate": lambda rng: declare(
        "calculate",
        spin(rng, "{Evaluate an arithmetic expression.|Calculate an expression.|A calculator.|Compute the value of a mathematical expression|Does arithmetic}"),
        {"expression": _described(rng, "string", "{The expression|Expression to evaluate|For example 2 + 3}")}, ["expression"]),
    "read_file": lambda rng: declare(
        "read_file",
        spin(rng, "{Read a text file.|Read a file from disk.|Returns the contents of a file|Read a file from the workspace.|Show the text of a file}"),
        {"path": _described(rng, "string", "{Path of the file|The path|File path}")}, ["path"]),
    "current_time": lambda rng: declare(
        "current_time", spin(rng, "{The current time.|Get the current date and time.|Tells the time|Returns the time of day|What time it is now}"), {}),
    "set_timer": lambda rng: declare(
        "set_timer",
        spin(rng, "{Set a timer.|Start a countdown timer.|Sets a timer that rings after some minutes|Set a kitchen timer}"),
        {"minutes": _described(rng, "integer", "{Minutes|How many minutes|Duration in minutes}"), "label": _described(rng, "string", "{What it is for|A label|Name of the timer}")},
        ["minutes"]),
    "search_web": lambda rng: declare(
        "search_web",
        spin(rng, "{Search the web.|Search the internet for pages.|Web search|Find pages on the web|Look something up on the web}"),
        {"query": _described(rng, "string", "{What to search for|The query|Search terms}"), "limit": _described(rng, "integer", "{How many results|Number of results|At most this many}")},
        ["query"]),
}  # fmt: skip

_SKY = "sunny|cloudy|rain|snow|fog|wind|clear|storm|overcast|light rain".split("|")


def _weather(rng: random.Random, city: str | None = None) -> Ask:
    city = city or words.city(rng)
    text = spin(
        rng,
        "{What is the weather in X|How is the weather in X|What's the weather like in X|Weather in X|weather X|Tell me the weather in X|Is it raining in X|Is it cold in X|Will it rain in X|Is it sunny in X|What is the weather in X today|Get the weather for X|What is the weather in X now|How is the weather in X at the moment|Weather in X this evening|How does the sky look in X today|Tell me about the weather in X right away|How warm is it in X|Check the weather in X|Show me the weather of X|Do I need an umbrella in X|I am going to X, how is the weather|What is the temperature in X|How hot is it in X now|Please look up the weather for X|Give me the weather report for X}?",
    ).replace("X", city)
    sky, degrees = rng.choice(_SKY), rng.randint(-15, 40)
    result = rng.choice(
        (
            f"{degrees}°C, {sky}",
            f"{sky}, {degrees}°C",
            f"{degrees} degrees and {sky}",
            json.dumps({"temp": degrees, "sky": sky}),
            json.dumps({"city": city, "temperature": degrees, "condition": sky}),
        )
    )
    return Ask(text, "get_weather", {"city": city}, result, f"The weather in {city}: {flat(result)}.")


def _calculate(rng: random.Random) -> Ask:
    expression = words.expression(rng)
    text = spin(
        rng,
        "{Calculate X for me|What does X give|What do I get for X|Work X out|Please tell me what X is|I would like to know X|Calculate X|What is X|Compute X|How much is X|Work out X|Evaluate X|X|X = ?|Please calculate X|What's X|Can you compute X|Tell me the result of X|I need the value of X|Use the calculator for X|Solve X}",
    ).replace("X", expression)
    result = str(rng.choice((rng.randint(-500, 99999), round(rng.random() * 1000, 2))))
    return Ask(text, "calculate", {"expression": expression}, result, f"{expression} = {result}")


def _read(rng: random.Random) -> Ask:
    path = words.path(rng)
    text = spin(
        rng,
        "{Read X|Show me X|Open X|What is in X|What does X say|Read the file X|cat X|Print X|Show the contents of X|Display X|Please read X|Look into X|Open the file X|Tell me what X contains|Have a look at X|What's inside X|Load X|Can you read X for me}",
    ).replace("X", path)
    body = talk.sentence(rng) if rng.random() < 0.8 else words.phrase(rng, most=6)
    return Ask(text, "read_file", {"path": path}, body, f"{path} says: {body}")


def _time(rng: random.Random) -> Ask:
    text = spin(
        rng,
        "{What time is it|What is the time|Tell me the time|Time, please|What's the time now|Do you know the time|What is the current time|What time is it now|How late is it|What is the date|What day is it today|Which day is it|Give me the current time|Is it late|Can you tell me the time}?",
    )
    clock = f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
    result = rng.choice(
        (
            clock,
            f"2026-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d} {clock}",
            json.dumps({"time": clock}),
        )
    )
    return Ask(text, "current_time", {}, result, f"It is {flat(result)}.")


def _timer(rng: random.Random) -> Ask:
    minutes = rng.choice((rng.randint(1, 60), rng.randint(1, 60), rng.randint(61, 999)))
    if rng.random() < 0.3:
        text = spin(
            rng,
            "{Set a timer for N minutes|Timer N minutes|Start a N minute timer|Wake me in N minutes|N minute timer please|Set the timer to N minutes|Count down N minutes|I need a timer of N minutes}",
        ).replace("N", str(minutes))
        arguments: Arguments = {"minutes": minutes}
        told = f"The timer is set: {minutes} minutes."
    else:
        label = words.label(rng)
        text = (
            spin(
                rng,
                "{Set a timer for N minutes for X|Set a N minute timer for X|Start a timer of N minutes called X|Timer for X, N minutes|Remind me of X in N minutes|Set a timer, N minutes, label X|Set a timer named X for N minutes|In N minutes, remind me: X|N minutes for X please|Set a N minute X timer|Set an X timer for N minutes|Start a N minute timer with the label X|I need a N minute timer for the X|Give me N minutes for X}",
            )
            .replace("N", str(minutes))
            .replace("X", label)
        )
        arguments = {"minutes": minutes, "label": label}
        told = f"The timer is set: {minutes} minutes for {label}."
    return Ask(
        text, "set_timer", arguments, rng.choice(("ok", "Timer set.", "done", '{"status": "set"}')), told
    )


def _search(rng: random.Random) -> Ask:
    query = words.phrase(rng)
    arguments: Arguments = {"query": query}
    if rng.random() < 0.55:
        text = spin(
            rng,
            "{I would like to search the web for X|I want to look up X|Can you look for X|Let us search for X|Search the web for X|Search for X|Look up X|Find X on the web|Google X|Search X|Do a web search for X|Look for X online|Please search for X|Can you search the web for X|Find pages about X|Search the internet for X|What does the web say about X|I want to find X on the web}",
        )
    else:
        limit = rng.randint(1, 20)
        arguments["limit"] = limit
        text = spin(
            rng,
            "{Search the web for X, N results|Find N results for X|Search for X and give me N results|Give me N pages about X|Look up X, at most N results|Search X with limit N|Find me N links about X|Show N results for X|Search the web for X, limit N|Top N results for X|I want N results about X|Search for N pages on X}",
        ).replace("N", str(limit))
    result = "\n".join(f"{i + 1}. {words.phrase(rng, most=3)}" for i in range(rng.randint(1, 3)))
    return Ask(text.replace("X", query), "search_web", arguments, result, f"I found:\n\n{result}")


ASKS: dict[str, Callable[[random.Random], Ask]] = {
    "get_weather": _weather, "calculate": _calculate, "read_file": _read, "current_time": _time, "set_timer": _timer, "search_web": _search,
}  # fmt: skip

# --- made-up tools --------------------------------------------------------------------------------------

VERBS = """paint clean build open close start stop move lift sell buy find show list create delete rename copy print send
load save lock unlock paint order cancel check count sort filter merge split rotate scale fill empty turn switch book rent
repair test run write draw sing plan mix bake cook wash iron fold pack ship track measure weigh tag rate like follow block
pause resume reset update install remove add subscribe publish hide invite call ping scan log mark archive restore describe""".split()
_PLAIN_PARAMETERS = """size color name width height speed level count title mode kind weight angle depth unit price
style target source format owner place date hour side volume topic author rank score shape power group code length""".split()

_REPLIES = "ok|done|Done.|success|finished|accepted|stored".split("|")


@dataclass(frozen=True)
class Slot:
    """One parameter of a made-up tool."""

    name: str
    kind: str

    @property
    def spoken(self) -> str:
        return self.name.replace("_", " ")


def _parameter(rng: random.Random, taken: set[str]) -> Slot:
    while True:
        roll = rng.random()
        if roll < 0.35:
            name = rng.choice(_PLAIN_PARAMETERS)
        elif roll < 0.6:
            name = rng.choice(words.NOUNS)
        elif roll < 0.85:
            name = words.pseudo_word(rng)
        else:
            name = f"{rng.choice(words.NOUNS)}_{rng.choice(_PLAIN_PARAMETERS)}"
        if name not in taken:
            taken.add(name)
            return Slot(
                name, rng.choice(("string", "string", "string", "integer", "integer", "number", "boolean"))
            )


def _value(rng: random.Random, slot: Slot) -> Any:
    if slot.kind == "integer":
        return words.integer(rng)
    if slot.kind == "number":
        return rng.choice((words.integer(rng), round(rng.random() * 100, rng.choice((1, 2)))))
    if slot.kind == "boolean":
        return rng.random() < 0.5
    maker = rng.choice((words.phrase, words.phrase, words.city, words.name, words.path, words.word))
    return maker(rng)


def _clause(rng: random.Random, slot: Slot, value: Any) -> str:
    """How a question mentions one named parameter."""
    name = slot.spoken if rng.random() < 0.8 else slot.name
    if slot.kind == "boolean":
        return rng.choice(
            (
                f"with {name}" if value else f"without {name}",
                f"{name} {'on' if value else 'off'}",
                f"{name} {'true' if value else 'false'}",
            )
        )
    forms = [
        f"with {name} {value}",
        f"{name} {value}",
        f"{name}: {value}",
        f"{name} is {value}",
        f"using {value} as {name}",
        f"with {value} as the {name}",
        f"the {name} is {value}",
        f"{name} = {value}",
        f"and {name} {value}",
        f"set {name} to {value}",
    ]
    if slot.kind == "integer":
        forms += [f"{value} {name}", f"for {value} {name}", f"with {value} {name}"]
    return rng.choice(forms)


def _describe(rng: random.Random, verb: str, noun: str) -> str:
    text = (
        spin(
            rng,
            "{V a N|V the N|Vs a N|Use this to v a N|V some N|Can v the N|Vs the given N|Tool to v a N|V one N}",
        )
        .replace("V", verb.capitalize())
        .replace(" v ", f" {verb} ")
        .replace("N", noun)
    )
    return text + rng.choice((".", "", f" {rng.choice(('for', 'in', 'with', 'by'))} {words.word(rng)}."))


@dataclass(frozen=True)
class MadeUp:
    """A made-up tool: its declaration and the parts of which questions are made."""

    declaration: dict[str, Any]
    verb: str
    noun: str
    required: tuple[Slot, ...]
    optional: tuple[Slot, ...]

    @property
    def name(self) -> str:
        return str(self.declaration["function"]["name"])

    def ask(self, rng: random.Random) -> Ask:
        arguments: Arguments = {}
        bare = rng.random() < 0.45
        head = (
            spin(
                rng,
                "{V the N|V a N|v N|Please v the N|Can you v the N|I want to v a N|V my N|Could you v the N|V N|Let us v the N|I need you to v the N|v the N now|Help me v a N}",
            )
            .replace("V", self.verb.capitalize())
            .replace("v ", f"{self.verb} ")
            .replace("N", self.noun)
        )
        if bare and "a " + self.noun not in head:
            head = head.replace(f" the {self.noun}", f" {self.noun}") if rng.random() < 0.3 else head
        clauses = []
        for i, slot in enumerate([*self.required, *(s for s in self.optional if rng.random() < 0.4)]):
            value = _value(rng, slot)
            if i == 0 and bare and slot.kind != "boolean":
                clauses.append(
                    rng.choice(
                        (
                            "",
                            "for ",
                            "to ",
                            "in ",
                            "called ",
                            "of ",
                            "about ",
                            "on ",
                            "at ",
                            "from ",
                            "with ",
                            "by ",
                        )
                    )
                    + str(value)
                )
            else:
                clauses.append(_clause(rng, slot, value))
            arguments[slot.name] = value
        if len(clauses) > 1 and not bare and rng.random() < 0.25:
            order = list(range(len(clauses)))
            rng.shuffle(order)
            clauses = [clauses[i] for i in order]
        text = head
        for i, clause in enumerate(clauses):
            joint = " " if i == 0 else rng.choice((" ", ", ", " and ", ", "))
            text += joint + (clause.removeprefix("and ") if i == 0 or "and" in joint else clause)
        ordered = {
            k: arguments[k]
            for k in self.declaration["function"]["parameters"]["properties"]
            if k in arguments
        }
        result = (
            rng.choice(_REPLIES)
            if rng.random() < 0.4
            else (
                talk.sentence(rng)
                if rng.random() < 0.5
                else json.dumps({words.word(rng): rng.choice((words.integer(rng), words.word(rng)))})
            )
        )
        return Ask(text, self.name, ordered, result, f"Done: {flat(result)}")


def made_up(rng: random.Random, *, near: MadeUp | None = None) -> MadeUp:
    """A new tool; `near` shares its verb or its noun with another one, so that both words count."""
    verb = rng.choice(VERBS) if rng.random() < 0.75 else words.pseudo_word(rng)
    noun = rng.choice(words.NOUNS) if rng.random() < 0.6 else words.pseudo_word(rng)
    if near:
        verb, noun = (near.verb, noun) if rng.random() < 0.5 else (verb, near.noun)
    roll = rng.random()
    if roll < 0.7:
        name = f"{verb}_{noun}"
    elif roll < 0.8:
        name = f"{noun}_{verb}"
    elif roll < 0.9:
        name = verb if rng.random() < 0.5 else noun
    else:
        name = words.pseudo_word(rng)
    taken = {name}
    slots = [_parameter(rng, taken) for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 2, 3)))]
    optional = [s for s in slots[1:] if rng.random() < 0.3]
    required = [s for s in slots if s not in optional]
    properties: dict[str, Any] = {}
    for slot in slots:
        properties[slot.name] = _described(
            rng,
            slot.kind,
            rng.choice(
                (
                    f"The {slot.spoken}",
                    f"{slot.spoken} of the {noun}",
                    slot.spoken.capitalize(),
                    f"Which {slot.spoken}",
                )
            ),
        )
    declaration = declare(name, _describe(rng, verb, noun), properties, [s.name for s in required])
    if verb in name and rng.random() < 0.12:
        declaration["function"].pop("description")
    return MadeUp(declaration, verb, noun, tuple(required), tuple(optional))


# --- exchanges ------------------------------------------------------------------------------------------


def _plan(asks: list[Ask]) -> str:
    def one(ask: Ask) -> str:
        given = ", ".join(f"{k}: {_spell(v)}" for k, v in ask.arguments.items())
        return f"{ask.tool} with {given}" if given else f"{ask.tool} without arguments"

    if len(asks) == 1:
        return f"I call {one(asks[0])}"
    return f"{len(asks)} calls.\n" + "\n".join(one(a) for a in asks)


def _spell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _calls(asks: list[Ask]) -> dict[str, Any]:
    return {
        "role": "assistant", "content": "", "reasoning_content": _plan(asks),
        "tool_calls": [{"type": "function", "function": {"name": a.tool, "arguments": a.arguments}} for a in asks],
    }  # fmt: skip


_FAULTS = (
    "Error: not found",
    "Error: timeout",
    "Error: permission denied",
    "Error: no network",
    "Error: {}",
    "Error: unknown {}",
)
_REFUSALS = (NOT_RUN, NOT_RUN, "Not run: the user declined.", "Not run.", "Not run: declined by the user")


def _exchange(rng: random.Random, text: str, asks: list[Ask]) -> Messages:
    out: Messages = [user(text), _calls(asks)]
    if rng.random() < 0.35:
        return out  # the call itself is what is learned
    if rng.random() < 0.08:  # the person goes on without a result
        out += [{"role": "tool", "content": NOT_RUN} for _ in asks]
        return out + rng.choice((talk.small_talk, talk.memory, talk.about_glmchat))(rng)
    roll = rng.random()
    if roll < 0.08:
        results = [rng.choice(_FAULTS).format(words.word(rng)) for _ in asks]
        answer = "The tool failed: " + results[0].removeprefix("Error: ") + "."
        think = "The tool failed. I say so."
    elif roll < 0.14:
        results = [rng.choice(_REFUSALS) for _ in asks]
        answer, think = "The tool was not run, so I cannot tell.", "The tool was not run. I say so."
    else:
        results = [a.result for a in asks]
        think = "The tool answered. I tell the user."
        answer = (
            asks[0].told if len(asks) == 1 else "\n".join(f"- {a.subject}: {flat(a.result)}" for a in asks)
        )
    out += [{"role": "tool", "content": r} for r in results]
    return [*out, assistant(answer, think)]


def _joined(rng: random.Random, asks: list[Ask]) -> str:
    first = asks[0].text.rstrip("?.")
    second = asks[1].text.rstrip("?.")
    if not second.split(" ")[0].isupper():
        second = second[0].lower() + second[1:]
    return (
        first
        + rng.choice((" and ", ", and ", ". Then ", " and then ", ", then ", "; ", " and also ", ". Also "))
        + second
        + rng.choice(("", ".", "?"))
    )


def _pair(rng: random.Random, tool: str) -> tuple[str, list[Ask]]:
    """Two calls of one known tool, asked in one breath."""
    one, two = ASKS[tool](rng), ASKS[tool](rng)
    if tool == "get_weather":
        a, b = one.arguments["city"], two.arguments["city"]
        text = spin(
            rng,
            "{What is the weather in A and B|Weather in A and in B|How is the weather in A and in B|Compare the weather of A and B|Is it warmer in A or in B|Tell me the weather for A and for B|weather A, B|What's the weather in A and what's it in B|Get the weather for both A and B}?",
        )
        return text.replace("A", "\0").replace("B", b).replace("\0", a), [one, two]
    if tool == "read_file":
        a, b = one.arguments["path"], two.arguments["path"]
        text = spin(
            rng,
            "{Read A and B|Show me A and B|Open both A and B|What is in A and in B|Compare A with B|Read the files A and B|cat A B}",
        )
        return text.replace("A", "\0").replace("B", b).replace("\0", a), [one, two]
    return _joined(rng, [one, two]), [one, two]


def _declared(
    rng: random.Random, needed: list[dict[str, Any]], near: MadeUp | None = None
) -> list[dict[str, Any]]:
    """The needed declarations among up to four others, in any order."""
    names = {t["function"]["name"] for t in needed}
    tools = list(needed)
    for _ in range(rng.choice((0, 0, 1, 1, 2, 3, 4))):
        if rng.random() < 0.5:
            other = KNOWN[rng.choice(list(KNOWN))](rng)
        else:
            other = made_up(rng, near=near if rng.random() < 0.4 else None).declaration
        if other["function"]["name"] not in names:
            names.add(other["function"]["name"])
            tools.append(other)
    rng.shuffle(tools)
    return tools


def tool_use(rng: random.Random) -> tuple[Messages, list[dict[str, Any]]]:
    """A question that wants one call or two, with the tools declared for it."""
    roll = rng.random()
    if roll < 0.36:  # one known tool
        ask = ASKS[rng.choice(list(ASKS))](rng)
        tools = _declared(rng, [KNOWN[ask.tool](rng)])
        out = _exchange(rng, sloppy(rng, ask.text), [ask])
        if (
            ask.tool == "get_weather"
            and out[-1]["role"] == "assistant"
            and not out[-1].get("tool_calls")
            and rng.random() < 0.4
        ):
            more = _weather(rng)
            city = more.arguments["city"]
            out += _exchange(
                rng,
                spin(rng, "{And in X|What about X|And X|How about X|And in X today}?").replace("X", city),
                [more],
            )
        return out, tools
    if roll < 0.74:  # one made-up tool
        tool = made_up(rng)
        ask = tool.ask(rng)
        return _exchange(rng, sloppy(rng, ask.text), [ask]), _declared(rng, [tool.declaration], near=tool)
    if roll < 0.84:  # two calls of one known tool
        name = rng.choice(list(set(ASKS) - {"current_time"}))
        text, asks = _pair(rng, name)
        return _exchange(rng, text, asks), _declared(rng, [KNOWN[name](rng)])
    if roll < 0.92:  # two different tools
        one, two = rng.sample(list(ASKS), 2)
        asks = [ASKS[one](rng), ASKS[two](rng)]
        return _exchange(rng, _joined(rng, asks), asks), _declared(rng, [KNOWN[one](rng), KNOWN[two](rng)])
    if roll < 0.96:  # a known and a made-up one, or two made-up ones
        tool = made_up(rng)
        if rng.random() < 0.5:
            name = rng.choice(list(ASKS))
            asks, needed = [ASKS[name](rng), tool.ask(rng)], [KNOWN[name](rng), tool.declaration]
        else:
            other = made_up(rng, near=tool)
            if other.name == tool.name:
                return tool_use(rng)
            asks, needed = [other.ask(rng), tool.ask(rng)], [other.declaration, tool.declaration]
        rng.shuffle(asks)
        return _exchange(rng, _joined(rng, asks), asks), _declared(rng, needed)
    # what is wanted is not declared
    wanted = rng.choice(list(ASKS))
    tools = [t for t in _declared(rng, []) if t["function"]["name"] != wanted] or [made_up(rng).declaration]
    if wanted == "calculate":
        return talk.arithmetic(rng), tools if all(t["function"]["name"] != "calculate" for t in tools) else [
            made_up(rng).declaration
        ]
    return [user(ASKS[wanted](rng).text), assistant(NO_TOOL, "No declared tool does this. I say so.")], tools
