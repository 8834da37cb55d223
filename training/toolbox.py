"""Tool declarations, the questions that call them, and the turns that follow.

Six tools are known well (`KNOWN`); thousands more are made up, so that the model learns to read a
declaration: to pick a tool by the words it shares with the question, and to copy names and values.
"""

from __future__ import annotations

import json
import random
import re
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
        "{What is the weather in X|How is the weather in X|What's the weather like in X|Weather in X|weather X|Tell me the weather in X|Is it raining in X|Is it cold in X|Will it rain in X|Is it sunny in X|What is the weather in X today|Get the weather for X|What is the weather in X now|How is the weather in X at the moment|Weather in X this evening|How does the sky look in X today|Tell me about the weather in X right away|How warm is it in X|Check the weather in X|Show me the weather of X|Do I need an umbrella in X|I am going to X, how is the weather|What is the temperature in X|How hot is it in X now|Please look up the weather for X|Give me the weather report for X|Weather X now|Has it rained in X|Is it windy over in X|Will there be snow in X tonight|What can you tell me about the weather of X|X weather, please|Weather forecast for X|Hi, weather in X|How are the skies over X|I want the weather of X|May I have the weather for X|What will the weather be in X tomorrow|Show the weather around X right now|Do you know the weather in X at present|Should I take a coat to X|What is it like outside in X|Forecast X|Do you know what the weather of X looks like|Say how the sky over X seems today|I wonder if it is warm in X at all|What is the sky in X doing|We fly to X tomorrow, will it rain|My sister lives in X, is it cold there|I am off to X, what should I wear}?",
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
        "{Calculate X for me|What does X give|What do I get for X|Work X out|Please tell me what X is|I would like to know X|Calculate X|What is X|Compute X|How much is X|Work out X|Evaluate X|X|X = ?|Please calculate X|What's X|Can you compute X|Tell me the result of X|I need the value of X|Use the calculator for X|Solve X|What does X come to|What would X be|What do you get when you do X|Could you find the value of X for us|I need X worked out|Run X through the calculator|What number is X|Say what X makes|Let me know what X comes out as|Calculate this: X|Compute X and tell me|Figure out X|X equals what|Find X, please|How much does X make|What X amounts to|Do you know what X is|Is X hard to work out|The value of X is what|I must know what X makes|What does X evaluate to|And X is|Say X equals how much}",
    ).replace("X", expression)
    result = str(rng.choice((rng.randint(-500, 99999), round(rng.random() * 1000, 2))))
    return Ask(text, "calculate", {"expression": expression}, result, f"{expression} = {result}")


def _read(rng: random.Random) -> Ask:
    path = words.path(rng)
    text = spin(
        rng,
        "{Read X|Show me X|Open X|What is in X|What does X say|Read the file X|cat X|Print X|Show the contents of X|Display X|Please read X|Look into X|Open the file X|Tell me what X contains|Have a look at X|What's inside X|Load X|Can you read X for me|What do we have in X|Give me the text of X|I need the contents of X|Take a look at X|Fetch X|Could I see X|What stands in X|Read me X, please|View X|Get X|Bring up the file X|I would like to read X|Open up X now|Would you print X here|What did I write in X|What is stored in X|Do you know what X holds|What does the file X have in it|Is there anything in X}",
    ).replace("X", path)
    body = talk.sentence(rng) if rng.random() < 0.8 else words.phrase(rng, most=6)
    return Ask(text, "read_file", {"path": path}, body, f"{path} says: {body}")


def _time(rng: random.Random) -> Ask:
    text = spin(
        rng,
        "{What time is it|What is the time|Tell me the time|Time, please|What's the time now|Do you know the time|What is the current time|What time is it now|How late is it|What is the date|What day is it today|Which day is it|Give me the current time|Is it late|Can you tell me the time|Got the time|Have you got the time|Time now|The time, please|What hour is it|Say the time|I need to know the time|Hello, what time is it|What does the clock say|May I ask the time|Check the time for me|How late is it right now|What is today's date|Please give me the time}?",
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
    if rng.random() < 0.25:
        text = spin(
            rng,
            "{Set a timer for N minutes|Timer N minutes|Start a N minute timer|Wake me in N minutes|N minute timer please|Set the timer to N minutes|Count down N minutes|I need a timer of N minutes|A N minute timer|Set N minutes on the timer|Start N minutes|Timer, N minutes, please|Could you count N minutes|Let a timer run for N minutes|Give me a timer for N minutes}",
        ).replace("N", str(minutes))
        arguments: Arguments = {"minutes": minutes}
        told = f"The timer is set: {minutes} minutes."
    else:
        label = words.label(rng)
        text = (
            spin(
                rng,
                "{Set a timer for N minutes for X|Set a N minute timer for X|Start a timer of N minutes called X|Timer for X, N minutes|Remind me of X in N minutes|Set a timer, N minutes, label X|Set a timer named X for N minutes|In N minutes, remind me: X|N minutes for X please|Set a N minute X timer|Set an X timer for N minutes|Start a N minute timer with the label X|I need a N minute timer for the X|Give me N minutes for X|Put N minutes on the clock for X|X timer, N minutes|Timer of N minutes, call it X|The X takes N minutes, set a timer|Could you run a N minute timer named X|Let me have a timer for X: N minutes|Start the X timer, N minutes|I want N minutes for the X|Ring in N minutes for X|Timer: N minutes, X|Run the timer: N minutes, X|Begin a timer, N minutes, X|Start timer N minutes: X|Can you start the X timer for N minutes|Could you set an X timer of N minutes|Set my X timer to N minutes|Please run a X timer for N minutes|Could you start a timer of N minutes for the X|Start the clock for X, N minutes|A timer of N minutes with label X, please}",
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
            "{I would like to search the web for X|I want to look up X|Can you look for X|Let us search for X|Search the web for X|Search for X|Look up X|Find X on the web|Google X|Search X|Do a web search for X|Look for X online|Please search for X|Can you search the web for X|Find pages about X|Search the internet for X|What does the web say about X|I want to find X on the web|Search online for X|Run a search on X|Web search: X|See what you can find about X|Find something about X|Could you look up X|Check the web for X|Get me pages on X|I need information on X from the web|Show me what the internet has on X|Try to find X online|Search for the words X|Try to learn about X online|Please ask the web about X|What do people write about X online|Find information on X on the web}",
        )
    else:
        limit = rng.randint(1, 20)
        arguments["limit"] = limit
        text = spin(
            rng,
            "{Search the web for X, N results|Find N results for X|Search for X and give me N results|Give me N pages about X|Look up X, at most N results|Search X with limit N|Find me N links about X|Show N results for X|Search the web for X, limit N|Top N results for X|I want N results about X|Search for N pages on X|Could you find N links on X|N results for X, please|Look for X and show N results|Get me N hits for X|Search the web for N pages on X|Do a search on X with at most N results|List N pages about X|X, N results|Search for X and list N hits|Look for X and return N links|Find X on the web and keep N results|Google X and print N of the results|Look X up and give N links|Can you search X and get N pages|Search the web for X and stop at N results|Check the web for X and fetch N pages}",
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


def _term(rng: random.Random, common: list[str], share: float) -> str:
    """A word to name something with: a common one in `share` of the cases, else a rare or made-up one."""
    while True:
        term = rng.choice(common) if rng.random() < share else words.pseudo_word(rng)
        if term not in words.HELD_TERMS:
            return term


def _parameter(rng: random.Random, taken: set[str]) -> Slot:
    while True:
        name = _term(rng, _PLAIN_PARAMETERS if rng.random() < 0.6 else words.NOUNS, 0.45)
        if rng.random() < 0.15:
            name = f"{name}_{_term(rng, _PLAIN_PARAMETERS, 0.5)}"
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
        bare = rng.random() < 0.5
        head = spin(
            rng,
            "{V the N|V a N|v N|Please v the N|Can you v the N|I want to v a N|V my N|Could you v the N|V N|Let us v the N|I need you to v the N|v the N now|Help me v a N|V this N|Would you v our N|V|Please v|Can you v the N for me|V some N|I need to v a N|v the N|V an N|Please v my N}",
        )
        heads = {"V": self.verb.capitalize(), "v": self.verb, "N": self.noun}
        head = re.sub(r"\b[VvN]\b", lambda m: heads[m[0]], head)
        clauses = []
        for i, slot in enumerate([*self.required, *(s for s in self.optional if rng.random() < 0.4)]):
            value = _value(rng, slot)
            if slot.name == self.noun and rng.random() < 0.6:  # "open 3 windows", "open the window Tulip"
                number = slot.kind == "integer"
                head = (
                    f"{heads['V']} {value} {self.noun}" if number else f"{heads['V']} the {self.noun} {value}"
                )
            elif bare and slot.kind != "boolean" and (i == 0 or (i == 1 and rng.random() < 0.4)):
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
                            "into ",
                            ": ",
                            ", ",
                        )
                    )
                    + str(value)
                )
            else:
                clauses.append(_clause(rng, slot, value))
            arguments[slot.name] = value
        if not clauses and rng.random() < 0.25:
            head += f" {rng.choice(('of', 'in', 'for', 'with'))} {words.word(rng)}"
        if len(clauses) > 1 and not bare and rng.random() < 0.25:
            order = list(range(len(clauses)))
            rng.shuffle(order)
            clauses = [clauses[i] for i in order]
        text = head
        for i, clause in enumerate(clauses):
            joint = " " if i == 0 else rng.choice((" ", ", ", " and ", ", "))
            if clause[:1] in ":,":
                joint = ""
            text += joint + (clause.removeprefix("and ") if i == 0 or "and" in joint else clause)
        ordered = {
            k: arguments[k]
            for k in self.declaration["function"]["parameters"]["properties"]
            if k in arguments
        }
        result = (
            rng.choice(_REPLIES)
            if rng.random() < 0.6
            else (
                talk.sentence(rng)
                if rng.random() < 0.5
                else json.dumps({words.word(rng): rng.choice((words.integer(rng), words.word(rng)))})
            )
        )
        return Ask(text, self.name, ordered, result, f"Done: {flat(result)}")


def made_up(rng: random.Random, *, near: MadeUp | None = None) -> MadeUp:
    """A new tool; `near` shares its verb or its noun with another one, so that both words count."""
    verb, noun = _term(rng, VERBS if rng.random() < 0.8 else words.NOUNS, 0.45), _term(rng, words.NOUNS, 0.4)
    if near:
        verb, noun = (near.verb, noun) if rng.random() < 0.5 else (verb, near.noun)
    roll = rng.random()
    if roll < 0.76:
        name = f"{verb}_{noun}"
    elif roll < 0.84:
        name = f"{noun}_{verb}"
    elif roll < 0.88:
        name = f"{verb}{noun.capitalize()}"
    elif roll < 0.95:
        name = verb if rng.random() < 0.5 else noun
    else:
        name = words.pseudo_word(rng)
    taken = {name}
    slots = [_parameter(rng, taken) for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 2, 3)))]
    if slots and rng.random() < 0.2 and noun not in taken:
        slots[0] = Slot(noun, rng.choice(("string", "string", "integer")))
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
    if verb in name and rng.random() < 0.15:
        declaration["function"].pop("description")
    return MadeUp(declaration, verb, noun, tuple(required), tuple(optional))


def matching_drill(rng: random.Random) -> tuple[str, list[tuple[str, str]]]:
    """Declarations, some cut down to names, and questions each with the call it wants in one line: choosing
    a tool by its words, and its parameters by the tool."""
    tools: list[MadeUp] = []
    while len(tools) < 2 or rng.random() < 0.75:
        tool = made_up(rng, near=tools[-1] if tools and rng.random() < 0.2 else None)
        if tool.verb in tool.name or tool.noun in tool.name:
            tools.append(tool)
    if rng.random() < 0.75:
        head = "".join(json.dumps(t.declaration) + "\n" for t in tools)
    else:
        head = "".join(
            f'{{"name": "{t.name}", "properties": {json.dumps([s.name for s in (*t.required, *t.optional)])}}}\n'
            for t in tools
        )
    asks = [rng.choice(tools).ask(rng) for _ in range(rng.randint(5, 9))]
    return head, [(f"{sloppy(rng, a.text)}\n", f"{_plan([a])}\n") for a in asks]


def calling_drill(rng: random.Random) -> tuple[str, list[tuple[str, bool]]]:
    """Declarations, then calls without a question, cut into pieces that are learned (the parameters' names)
    or not: what parameters a tool has stands far from its name, behind a description."""
    tools = [made_up(rng) for _ in range(rng.randint(2, 6))]
    head = "".join(json.dumps(t.declaration) + "\n" for t in tools)
    pieces: list[tuple[str, bool]] = []
    for _ in range(rng.randint(8, 14)):
        tool = rng.choice(tools)
        given = [(k, words.word(rng)) for k in tool.declaration["function"]["parameters"]["properties"]]
        if rng.random() < 0.6:
            pieces.append((f"<tool_call>{tool.name}\n", False))
            for name, value in given:
                pieces += [
                    ("<arg_key>", False),
                    (f"{name}</arg_key>", True),
                    (f"\n<arg_value>{value}</arg_value>\n", False),
                ]
            pieces.append(("</tool_call>\n", not given))
        else:
            pieces.append((f"I call {tool.name}", False))
            if not given:
                pieces.append((" without arguments", True))
            for i, (name, value) in enumerate(given):
                pieces += [(", " if i else " with ", not i), (f"{name}:", True), (f" {value}", False)]
            pieces.append(("\n", False))
    return head, pieces


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


def _exchange(rng: random.Random, text: str, asks: list[Ask], *, last: bool) -> Messages:
    """A question, its calls, and what came of them; what is learned may end with the calls."""
    out: Messages = [user(text), _calls(asks)]
    roll = rng.random()
    if last and roll < 0.35:
        return out
    if not last and roll < 0.5:  # the person goes on without a result
        return out + [{"role": "tool", "content": NOT_RUN} for _ in asks]
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
            "{What is the weather in A and B|Weather in A and in B|How is the weather in A and in B|Compare the weather of A and B|Is it warmer in A or in B|Tell me the weather for A and for B|weather A, B|What's the weather in A and what's it in B|Get the weather for both A and B|What is the weather in A, and in B|Weather for A and B please|Tell me about the weather in A and B|How is it in A and how in B|Is it raining in A and B|I need the weather of A and of B|Please check A and B for rain|What is the weather like in A and in B|Show me the weather in A and B|How about the weather in A and B}?",
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


@dataclass(frozen=True)
class Tool:
    """One tool of a dialogue: its declaration, and a maker of questions for it."""

    declaration: dict[str, Any]
    ask: Callable[[random.Random], Ask]

    @property
    def name(self) -> str:
        return str(self.declaration["function"]["name"])


def _known(rng: random.Random, name: str) -> Tool:
    return Tool(KNOWN[name](rng), ASKS[name])


def _bench(rng: random.Random) -> list[Tool]:
    """One to five tools. Some made-up ones share their verb or their noun with another."""
    tools: dict[str, Tool] = {}
    near: MadeUp | None = None
    count = rng.choice((1, 1, 2, 2, 2, 3, 3, 4, 5))
    while len(tools) < count:
        if rng.random() < 0.42:
            tool = _known(rng, rng.choice(list(KNOWN)))
        else:
            made = made_up(rng, near=near if rng.random() < 0.3 else None)
            near = made
            tool = Tool(made.declaration, made.ask)
        tools.setdefault(tool.name, tool)
    out = list(tools.values())
    rng.shuffle(out)
    return out


def _unavailable(rng: random.Random, bench: list[Tool]) -> Messages:
    """A question for a known tool that is not declared."""
    wanted = rng.choice([n for n in ASKS if n not in {t.name for t in bench}] or ["calculate"])
    if wanted == "calculate":
        return talk.small_talk(rng) if any(t.name == "calculate" for t in bench) else talk.arithmetic(rng)
    return [user(ASKS[wanted](rng).text), assistant(NO_TOOL, "No declared tool does this. I say so.")]


_BEFORE = """Hello, |Okay, |So, |Well, |Now |And |Also, |Next, |Good morning, |One more thing: |Next question: |A small request: |My question: |Tell me: |
Listen, |GLM, |Excuse me, |If you can, |When you have a moment, |Just |I wonder: |For my work: |Task: |Let me ask: |Now then, |Help: |By the way, |Then |
Hi GLM, |Something else: |First, |One last thing: |Oh, |Yes, |Be so kind: |Here is what I need: |To do: |Right, |Thanks. |Good. |Fine, """.replace(
    "\n", ""
).split("|")
_AFTER = """, please|, thanks|, thank you|, would you|, ok|, if you can|, will you|, right|, if you like|, can you|, quickly|, that is all|, my friend|, GLM
 right away| for us| for my boss| one more time| and tell me the result| as soon as you can| before I leave| when you can""".replace(
    "\n", "|"
).split("|")


def _dressed(rng: random.Random, text: str) -> str:
    """The question with words around it that say nothing: what is wanted must be told from them."""
    if rng.random() < 0.2:
        text = rng.choice(_BEFORE) + (text if text[:2].isupper() else text[0].lower() + text[1:])
    if rng.random() < 0.12:
        end = text[-1] if text[-1] in "?." else ""
        text = text.rstrip("?.") + rng.choice(_AFTER) + end
    return sloppy(rng, text)


def _called(rng: random.Random, bench: list[Tool], *, last: bool) -> Messages:
    """A question that wants one call, or two calls of one tool or of two."""
    tool = rng.choice(bench)
    if rng.random() < 0.84:
        ask = tool.ask(rng)
        out = _exchange(rng, _dressed(rng, ask.text), [ask], last=last)
        answered = out[-1]["role"] == "assistant" and not out[-1].get("tool_calls")
        if tool.name == "get_weather" and answered and rng.random() < 0.3:
            more = _weather(rng)
            ask_more = spin(rng, "{And in X|What about X|And X|How about X|And in X today|Now X|X too}?")
            out += _exchange(rng, ask_more.replace("X", more.arguments["city"]), [more], last=last)
        return out
    if tool.name in ASKS and rng.random() < 0.6:
        if tool.name == "current_time":
            return _called(rng, bench, last=last)
        text, asks = _pair(rng, tool.name)
    else:
        asks = [tool.ask(rng), rng.choice([t for t in bench if t is not tool] or [tool]).ask(rng)]
        text = _joined(rng, asks)
    return _exchange(rng, text, asks, last=last)


def tool_use(rng: random.Random) -> tuple[Messages, list[dict[str, Any]]]:
    """A few questions, one after the other, with the tools declared for them: the declarations are long,
    and are read once for all of them."""
    bench = _bench(rng)
    messages: Messages = []
    count = rng.choice((1, 1, 2, 3, 4, 6))
    for i in range(count):
        roll = rng.random()
        if roll < 0.85:
            messages += _called(rng, bench, last=i == count - 1)
        elif roll < 0.90:
            messages += _unavailable(rng, bench)
        elif roll < 0.97:
            messages += talk.small_talk(rng)
        else:
            messages += rng.choice((talk.memory, talk.about_glmchat))(rng)
    return messages, [t.declaration for t in bench]
