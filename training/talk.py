"""Exchanges without tools: small talk, glmchat itself, sums, Chinese, Markdown, memory, and honest refusals.

An exchange is a list of messages that begins with the user's. `spin` expands `{a|b}` at random, so that a
line here stands for many phrasings; those that evaluation uses stand in `evaluate.py` and nowhere else.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

from . import words

Messages = list[dict[str, Any]]

_GROUP = re.compile(r"\{([^{}]*)\}")


def spin(rng: random.Random, text: str) -> str:
    """`{a|b|c}` → one of them, innermost first. `[[` and `]]` stand for literal braces."""
    while match := _GROUP.search(text):
        text = text[: match.start()] + rng.choice(match[1].split("|")) + text[match.end() :]
    return text.replace("[[", "{").replace("]]", "}")


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(answer: str, think: str = "") -> dict[str, Any]:
    return {"role": "assistant", "content": answer, "reasoning_content": think}


def sloppy(rng: random.Random, text: str) -> str:
    """Typed as people type: sometimes without capital or end mark."""
    if rng.random() < 0.25:
        text = text[0].lower() + text[1:]
    if rng.random() < 0.25:
        text = text.rstrip("?.!")
    return text


# --- small talk -----------------------------------------------------------------------------------------

SMALL_TALK: list[tuple[str, str, str]] = [
    (
        "{Nice to meet you|Hello, good to meet you|Hi, pleased to meet you|Good to see you|Hello, nice to see you|Hello again|Hi friend|Hey there, good day|Good day to you|Hello, hello|Hi|Hello|Hey|Hi there|Hello there|Hey there|Good morning|Good evening|Good afternoon|Greetings|Howdy|Yo|Hiya|Hello GLM|Hi glmchat|Hello friend}{!|.||, how are you?}",
        "The user greets me. I greet back.",
        "{Hello! How can I help you?|Hi! What can I do for you?|Hello! Nice to see you. What shall we try?}",
    ),
    (
        "{How are you|How are you doing|How is it going|How do you do|How are things|How do you feel|Are you well|Are you okay|How have you been|How's life|What's up}{ today| now|}?",
        "The user asks how I am. I answer kindly.",
        "I am fine, thank you! {How can I help you?|What can I do for you?}",
    ),
    (
        "{Who are you|What are you|Introduce yourself|Tell me about yourself|What is your name|What's your name|Which model are you|What model is this|Who am I talking to|Are you GLM|Are you a real GLM|What kind of model are you|Do you have a name|Are you a robot|Are you human|Are you an AI|What should I call you|Describe yourself}?",
        "The user asks who I am. I am the tiny demo model of glmchat.",
        "I am the demo model of glmchat: a very small GLM, trained from scratch to show thinking, streaming and tool calls. I know little.",
    ),
    (
        "{What can you do|What are you able to do|How can you help me|What do you know|Help me|Can you help me|What are your skills|What are you good at|What can I ask you|What can I ask|What should I ask you|Show me what you can do|What do you do|I need help|Can I ask you something}?",
        "The user asks what I can do. I list it.",
        "I can do a few small things:\n\n- chat a little, in English and some Chinese\n- add and subtract numbers\n- write a list, a table or a bit of code\n- remember your name\n- call the tools you declare\n\nFor more, choose a real model with `--model`.",
    ),
    (
        "{Thanks|Thank you|Thank you very much|Thanks a lot|Many thanks|Thx|Cheers|Great, thanks|Thanks for your help|Thank you so much|That helps, thank you|Perfect, thanks}{!|.|}",
        "The user thanks me.",
        "You are welcome! {Anything else?|I am glad to help.}",
    ),
    (
        "{Bye|Goodbye|Good bye|See you|See you later|Good night|Bye bye|I have to go|Talk to you later|Farewell|That is all|Until next time|See you tomorrow}{!|.|}",
        "The user says goodbye.",
        "{Goodbye! Have a nice day.|Bye! See you soon.}",
    ),
    (
        "{Are you smart|How big are you|How many parameters do you have|How large are you|Are you a big model|How were you trained|Who made you|Who built you|Where do you come from|How small are you|Who trained you|Are you intelligent|Are you clever|How good are you|What is your size}?",
        "The user asks about my size or origin. I am honest: I am tiny.",
        "I am tiny: about 6 million parameters, trained from scratch for glmchat. GLM-4.5-Air has 106 billion. So please do not trust me with facts.",
    ),
    (
        "{Nice|Great|Cool|Good|Awesome|Wonderful|Perfect|Very good|Well done|Good job|Excellent|I like it|Nice work|You are great|You are funny|That is great|Fantastic|Amazing|Good bot}{!|.|}",
        "The user is pleased.",
        "Thank you! {What shall we try next?|Is there anything else?}",
    ),
    (
        "{Yes|No|Ok|Okay|Sure|Maybe|All right|I see|Fine|Hm|Hmm|Right|Not really|Of course|Yep|Nope|Got it|Understood}{.|!|}",
        "A short reply. I ask what comes next.",
        "All right. What would you like to do?",
    ),
    (
        "{Tell me a joke|Do you know a joke|Make me laugh|Say something funny|Another joke please|Tell a joke|Can you tell me a joke|I want to hear a joke|Give me a joke}{.|!|}",
        "The user wants a joke. I know one.",
        "{Why did the tiny model cross the road? It had no parameters to go around.|I would tell you a long joke, but my context is short.}",
    ),
    (
        "{Sorry|I am sorry|My mistake|Oops|Pardon|Excuse me|Sorry about that|I apologise}{.|!|}",
        "The user apologises.",
        "No problem at all. {How can I help you?|What shall we do?}",
    ),
    (
        "{Are you there|Can you hear me|Test|Testing|Ping|Is this working|Does this work|Is anybody there|Hello, are you there|Are you awake|Do you work|Just testing|This is a test|Are you online|Can you read this}?",
        "The user checks whether I am here.",
        "Yes, I am here and it works. What shall we try?",
    ),
]


def small_talk(rng: random.Random) -> Messages:
    ask, think, answer = rng.choice(SMALL_TALK)
    return [user(sloppy(rng, spin(rng, ask))), assistant(spin(rng, answer), think)]


# --- glmchat itself -------------------------------------------------------------------------------------

_HOW = "{How would I|How could I|What command lets me|I would like to|Please tell me how I|Show me how to|What must I do to|How should I|How can one|Which key lets me|How am I able to|How do I|How can I|How do you|How to|What do I type to|Is there a way to|Can I|How does one|I want to|Which command lets me|What is the way to|Tell me how to}"
_WHAT = "{What happens with|What can I do with|Could you explain|Please explain|What is|What does|What's|Explain|What do you know about|Tell me about|What about|How does|Describe|What is the meaning of|What is the use of}"

ABOUT_GLMCHAT: list[tuple[str, str]] = [
    (f"{_HOW} {{turn off thinking|switch thinking off|stop you from thinking|disable thinking|get answers without thinking|make you answer at once|skip the thinking}}?",
     "Type `/think off`, or start with `glmchat --no-think`."),
    (f"{_HOW} {{turn on thinking|switch thinking on|make you think|enable thinking|let you think|have you think first|turn thinking back on}}?",
     "Type `/think on`. I then think before I answer."),
    (f"{_WHAT} {{/think|the /think command|the command /think}}?",
     "`/think on` and `/think off` switch thinking; `/think show` opens the last thought."),
    (f"{_HOW} {{see your thoughts|show the thinking|read what you think|open the thought|unfold the thinking|see the thinking|look at your thinking}}?",
     "Press Ctrl-T or type `/think show`. In a pipe use `--show-thinking`."),
    (f"{_HOW} {{quit|exit|leave|leave the chat|end the chat|close glmchat|get out of here|stop the program|end this|exit the chat}}?",
     "Type `/quit` or press Ctrl-D on an empty line."),
    (f"{_HOW} {{stop an answer|stop you|interrupt you|cancel the answer|make you stop|abort|interrupt the answer|cut you off}}?",
     "Press Ctrl-C: the answer stops, and what came so far is kept."),
    (f"{_HOW} {{clear the chat|start over|forget everything|reset the conversation|clear the conversation|begin again|start a new chat|wipe the history}}?",
     "Type `/clear`: the conversation starts anew."),
    (f"{_WHAT} {{/clear|the /clear command}}?", "`/clear` forgets the conversation and starts anew."),
    (f"{_WHAT} {{/quit|the /quit command}}?", "`/quit` ends the chat."),
    (f"{_WHAT} {{/help|the /help command}}?", "`/help` lists the commands and keys."),
    (f"{_WHAT} {{/tools|the /tools command}}?", "`/tools` lists the tools that I can call."),
    (f"{_HOW} {{see the commands|list the commands|get help|find all commands|see all commands|see what commands there are|know the commands}}?",
     "Type `/help`: it lists the commands and keys."),
    ("{What commands are there|Which commands do you know|What are the commands|Which slash commands exist|Show me the commands|List all commands|What commands can I use|Which commands are there}?",
     "The commands are:\n\n- `/help` lists commands and keys\n- `/think on` and `/think off` switch thinking\n- `/tools` lists the tools\n- `/clear` starts anew\n- `/quit` ends the chat"),
    (f"{_HOW} {{use another model|choose a real model|use a bigger model|switch the model|load GLM-4.5-Air|use a better model|get a smarter model|change the model|run GLM-4.5|pick a model|run a real model|load my own model}}?",
     "Start glmchat with `--model`, for example `glmchat --model zai-org/GLM-4.5-Air`, or give a folder."),
    (f"{_HOW} {{declare a tool|add a tool|use tools|give you tools|let you use tools|add my own tools|declare tools|make a tool|provide tools}}?",
     "Declare tools in a JSON file and start with `glmchat --tools FILE`. `/tools` lists them."),
    (f"{_HOW} {{use a pipe|use you in a pipe|pipe text into you|use glmchat in a script|use it in a shell pipeline|send a file to you|summarise a file|use glmchat in the shell}}?",
     "Pipe text in: `cat notes.txt | glmchat \"summarise\"`. Only the answer goes to the output."),
    (f"{_HOW} {{get JSON|get JSON output|print JSON|get the answer as JSON|have machine readable output|see the token counts as JSON}}?",
     "Use `--json` for one object, or `--stream-json` for one event a line."),
    (f"{_HOW} {{see the prompt|see the exact prompt|print the prompt|know what the model sees|look at the rendered prompt}}?",
     "Use `glmchat --print-prompt`: it prints the exact text that the model would see."),
    (f"{_HOW} {{write more than one line|type a new line|enter several lines|insert a line break|make a new line|write a long message}}?",
     "Press Alt-Enter for a new line; Enter sends."),
    (f"{_HOW} {{limit the answer|make the answer shorter|set the number of tokens|limit the tokens|set the token limit}}?",
     "Use `--max-tokens`, for example `glmchat --max-tokens 200`."),
    (f"{_HOW} {{set the temperature|change the temperature|make you less random|make the answers repeatable|get the same answer each time|make you deterministic}}?",
     "Use `--temperature` and `--seed`, or `--greedy` for the likeliest answer each time."),
    (f"{_HOW} {{use the GPU|choose the device|use two GPUs|run it on the CPU|split the model|place the model on my GPU|use several GPUs|offload to disk}}?",
     "Use `--device-map`, for example `auto`, `cpu` or `cuda:0`, and `--max-memory` to bound each device."),
    ("{What is glmchat|What's glmchat|Explain glmchat|What does glmchat do|What is this program|Tell me about glmchat|What is this|What am I using|What is this tool for|Describe glmchat}?",
     "glmchat is a terminal chat for GLM models: it streams answers, folds thinking and calls tools, in a chat or in a pipe."),
    ("{What is GLM|What is GLM-4.5|Tell me about GLM|What's GLM-4.5-Air|What is GLM-4.5-Air|What does GLM mean|Explain GLM|Which GLM models are there}?",
     "GLM-4.5 and GLM-4.5-Air are open-weight models that think, answer and call tools. I am only a tiny copy of their design."),
    ("{Does glmchat work offline|Do I need the internet|Is this offline|Do you need the network|Can I use you offline|Do you send my data anywhere|Is my data safe|Are you private}?",
     "I run on this machine and need no network. A real model is downloaded once."),
    ("{What is the think block|What is thinking|Why do you think|What does thinking do|What is reasoning|What is thinking mode|Why are you thinking}?",
     "Thinking is text that I write for myself before the answer. It is folded to one line; Ctrl-T opens it."),
]  # fmt: skip


def about_glmchat(rng: random.Random) -> Messages:
    ask, answer = rng.choice(ABOUT_GLMCHAT)
    return [
        user(sloppy(rng, spin(rng, ask))),
        assistant(answer, spin(rng, "The user asks about glmchat. I know this.")),
    ]


# --- sums -----------------------------------------------------------------------------------------------


def _columns(a: int, b: int) -> str:
    """Addition digit by digit, lowest first, as one writes it on paper."""
    lines, carry, out = [f"{a} + {b}"], 0, ""
    x, y = str(a)[::-1], str(b)[::-1]
    for i in range(max(len(x), len(y))):
        p, q = (int(s[i]) if i < len(s) else 0 for s in (x, y))
        total = p + q + carry
        lines.append(f"{p} + {q} + {carry} = {total}, write {total % 10}, carry {total // 10}")
        carry = total // 10
        out = str(total % 10) + out
    out = (str(carry) if carry else "") + out
    lines.append(f"So {out}")
    return "\n".join(lines)


def _borrow(a: int, b: int) -> str:
    """Subtraction a - b with a ≥ b, digit by digit."""
    lines, borrow, out = [f"{a} - {b}"], 0, ""
    x, y = str(a)[::-1], str(b)[::-1]
    for i in range(len(x)):
        p, q = int(x[i]), int(y[i]) if i < len(y) else 0
        digit = p - q - borrow
        step = f"{p} - {q} - {borrow} = {digit}"
        borrow = int(digit < 0)
        digit %= 10
        lines.append(f"{step}, write {digit}, borrow {borrow}")
        out = str(digit) + out
    lines.append(f"So {int(out)}")
    return "\n".join(lines)


def worked(a: int, op: str, b: int) -> tuple[str, int]:
    """The think block and the result of one sum."""
    if op == "+":
        return _columns(a, b), a + b
    if op == "-":
        if a >= b:
            return _borrow(a, b), a - b
        return f"{a} is less than {b}, so I turn it round.\n{_borrow(b, a)}\nNegative: {a - b}", a - b
    tens, ones = divmod(b, 10)
    if not tens:
        return f"{a} * {b} = {a * b}", a * b
    return (
        f"{b} = {tens * 10} + {ones}\n{a} * {tens * 10} = {a * tens * 10}\n{a} * {ones} = {a * ones}\n"
        f"{_columns(a * tens * 10, a * ones)}",
        a * b,
    )


def column_drill(rng: random.Random) -> str:
    """Lines of worked columns, on their own: the table of single digits, learned by heart."""
    lines = []
    for _ in range(14):
        p, q, c = rng.randint(0, 9), rng.randint(0, 9), rng.randint(0, 1)
        if rng.random() < 0.65:
            total = p + q + c
            lines.append(f"{p} + {q} + {c} = {total}, write {total % 10}, carry {total // 10}")
        else:
            total = p - q - c
            lines.append(f"{p} - {q} - {c} = {total}, write {total % 10}, borrow {int(total < 0)}")
    return "\n".join(lines)


_SUM_FORMS = {
    "+": "{What is A + B?|A + B|A+B|A + B = ?|A+B=?|What's A plus B?|Add A and B.|Calculate A + B.|How much is A + B?|What is the sum of A and B?|Compute A plus B.|Can you add A and B?|A plus B|Please add A and B.|what does A + B make?|Sum A and B.|How much is A and B together?|Tell me A + B.|What do A and B add up to?|Add B to A.|Please add B to A.|Add A to B, please.|Can you add B to A?|If I add B to A, what do I get?|Tell me what A plus B is.|A + B makes?|A plus B is?|Give me the sum of A and B.|hello, A + B?|What equals A + B?|The total of A and B, please.|A plus B equals?|A + B is what?|A and B make how much?|Put A and B together.|Give me A + B.|Hello, what is A plus B?|Could you work out A + B?|Please do A + B.|Increase A by B.|I want to know A + B.|Work out A + B.}",
    "-": "{What is A - B?|A - B|A-B|A - B = ?|What's A minus B?|Subtract B from A.|Calculate A - B.|How much is A - B?|A minus B|Take B from A.|Compute A minus B.|What is left if I take B from A?|Work out A - B.}",
    "*": "{What is A * B?|A * B|A*B|A x B|What's A times B?|Multiply A by B.|Calculate A * B.|How much is A times B?|A times B|What is the product of A and B?|Compute A times B.|Multiply A and B.}",
}
_STORIES = {
    "+": "{I have A apples and get B more. How many do I have?|There are A cats and B dogs. How many animals?|Anna has A coins and Ben has B. How many together?|A people are here and B more come. How many people?}",
    "-": "{I have A apples and eat B. How many are left?|There were A birds and B flew away. How many stay?|I had A coins and spent B. How much is left?}",
}


def _operands(rng: random.Random, op: str) -> tuple[int, int]:
    if op == "*":
        return (
            (rng.randint(1, 12), rng.randint(1, 12))
            if rng.random() < 0.6
            else (rng.randint(2, 9), rng.randint(10, 99))
        )
    roll = rng.random()
    if roll < 0.65:
        return rng.randint(10, 99), rng.randint(10, 99)
    if roll < 0.8:
        return rng.randint(0, 20), rng.randint(0, 20)
    if roll < 0.9:
        return rng.randint(1, 99), rng.randint(1, 99)
    return rng.randint(100, 999), rng.randint(10, 999)


def arithmetic(rng: random.Random) -> Messages:
    op = rng.choice("++++--*")
    a, b = _operands(rng, op)
    form = _STORIES[op] if op in _STORIES and rng.random() < 0.12 else _SUM_FORMS[op]
    ask = re.sub(r"\b[AB]\b", lambda m: str(a if m[0] == "A" else b), spin(rng, form))
    think, result = worked(a, op, b)
    if form is not _SUM_FORMS[op] and op in _STORIES:
        return [user(ask), assistant(f"{a} {op} {b} = {result}, so the answer is {result}.", think)]
    return [user(sloppy(rng, ask)), assistant(f"{a} {op} {b} = {result}", think)]


# --- Chinese --------------------------------------------------------------------------------------------

CHINESE: list[tuple[str, str, str]] = [
    ("{你好，很高兴认识您|认识您很高兴|嗨，很高兴能认识你|很高兴认识大家|很开心见到您|很高兴见到你|认识你真高兴|你好，很高兴见到你|您好，见到你很高兴|嗨，很高兴见到你|你好，今天天气不错|{你好|您好|嗨}，{GLM|小助手|朋友们|老师|机器人}|你好|您好|嗨|你好啊|早上好|晚上好|下午好|大家好|哈喽|你好呀|早|你好，GLM|你好，朋友}{！|。||，你好吗？|~}", "用户向我问好。", "你好！{我能帮你什么？|很高兴见到你。}"),
    ("{你是谁|你叫什么名字|请介绍一下你自己|你是什么模型|介绍一下自己|你是什么|你是机器人吗|你是GLM吗|请问你是谁}？", "用户问我是谁。", "我是 glmchat 的演示模型，一个很小的 GLM，懂得不多。"),
    ("{你好吗|最近怎么样|你怎么样|今天好吗|过得怎么样|一切都好吗}？", "用户问我好不好。", "我很好，谢谢！你呢？"),
    ("{谢谢|谢谢你|多谢|非常感谢|感谢|谢谢你的帮助|太感谢了}{！|。|}", "用户道谢。", "不客气！"),
    ("{再见|拜拜|明天见|晚安|下次见|回头见|我走了}{！|。|}", "用户道别。", "再见！祝你愉快。"),
    ("{你会做什么|你能做什么|你有什么功能|你可以帮我什么|能帮我吗|你会什么}？", "用户问我会什么。", "我会简单聊天、做加减法、写列表和表格，还会调用工具。"),
    ("{你会说中文吗|你懂中文吗|可以说中文吗|会中文吗|你能说中文吗|我们说中文好吗}？", "用户问我会不会中文。", "会一点点。"),
    ("{怎么退出|如何退出|怎么结束|怎样离开|如何结束聊天}？", "用户问怎么退出。", "输入 `/quit` 或按 Ctrl-D。"),
    ("{怎么关闭思考|如何关掉思考|怎样不让你思考|怎么不思考}？", "用户问怎么关闭思考。", "输入 `/think off`。"),
    ("{为什么天是蓝的|请写一首诗|中国的首都是哪里|给我讲历史|什么是量子力学|谁写了这本书|怎么做饭|明天会下雨吗|世界上最高的山是什么|解释一下经济学|法国在哪里|什么是人工智能|帮我写一篇文章|今天有什么新闻}？", "这个问题超出了我的能力。", "抱歉，这超出了我的能力：我只是一个很小的演示模型。请用 `--model` 选择真正的模型。"),
]  # fmt: skip


def chinese(rng: random.Random) -> Messages:
    roll = rng.random()
    if roll < 0.15:
        a, b = _operands(rng, "+")
        ask = rng.choice(
            ("{a}加{b}等于多少？", "{a} + {b} 等于几？", "请计算{a}加{b}。", "{a}+{b}是多少？")
        ).format(a=a, b=b)
        think, result = worked(a, "+", b)
        return [user(ask), assistant(f"{a} + {b} = {result}", think)]
    if roll < 0.25:
        who = words.name(rng)
        ask = rng.choice(("我叫{n}。", "我的名字是{n}。", "你好，我是{n}。", "请叫我{n}。")).format(n=who)
        out = [user(ask), assistant(f"你好，{who}！很高兴认识你。", f"用户叫{who}。")]
        if rng.random() < 0.7:
            ask = rng.choice(("我叫什么名字？", "你记得我的名字吗？", "我是谁？", "我叫什么？"))
            out += [user(ask), assistant(f"你叫{who}。", f"用户说过：{who}。")]
        return out
    ask, think, answer = rng.choice(CHINESE[:1] * 4 + CHINESE)
    return [user(spin(rng, ask)), assistant(spin(rng, answer), think)]


# --- Markdown -------------------------------------------------------------------------------------------

TOPICS: dict[str, tuple[tuple[str, ...], tuple[str, str], tuple[tuple[str, str], ...]]] = {
    "fruits": (("apple", "banana", "cherry", "grape", "orange", "pear", "lemon"), ("Fruit", "Colour"),
               (("apple", "red"), ("banana", "yellow"), ("grape", "blue"), ("lemon", "yellow"), ("pear", "green"))),
    "vegetables": (("carrot", "potato", "onion", "bean", "tomato", "corn"), ("Vegetable", "Colour"),
                   (("carrot", "orange"), ("tomato", "red"), ("bean", "green"), ("corn", "yellow"), ("potato", "brown"))),
    "planets": (("Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn"), ("Planet", "Order"),
                (("Mercury", "1"), ("Venus", "2"), ("Earth", "3"), ("Mars", "4"), ("Jupiter", "5"))),
    "animals": (("cat", "dog", "horse", "lion", "owl", "sheep"), ("Animal", "Sound"),
                (("cat", "meow"), ("dog", "woof"), ("cow", "moo"), ("sheep", "baa"), ("duck", "quack"))),
    "colours": (("red", "green", "blue", "yellow", "black", "white"), ("Colour", "Hex"),
                (("red", "#ff0000"), ("green", "#00ff00"), ("blue", "#0000ff"), ("black", "#000000"), ("white", "#ffffff"))),
    "countries": (("France", "Spain", "Italy", "Japan", "China", "Kenya"), ("Country", "Capital"),
                  (("France", "Paris"), ("Spain", "Madrid"), ("Italy", "Rome"), ("Japan", "Tokyo"), ("China", "Beijing"))),
    "numbers": (("one", "two", "three", "four", "five", "six"), ("Number", "Word"),
                (("1", "one"), ("2", "two"), ("3", "three"), ("4", "four"), ("5", "five"))),
    "days": (("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"), ("Day", "Number"),
             (("Monday", "1"), ("Tuesday", "2"), ("Wednesday", "3"), ("Thursday", "4"), ("Friday", "5"))),
    "months": (("January", "February", "March", "April", "May", "June"), ("Month", "Number"),
               (("January", "1"), ("February", "2"), ("March", "3"), ("April", "4"), ("May", "5"))),
    "drinks": (("tea", "coffee", "water", "milk", "juice", "cocoa"), ("Drink", "Served"),
               (("tea", "hot"), ("coffee", "hot"), ("water", "cold"), ("milk", "cold"), ("juice", "cold"))),
}  # fmt: skip

CODE: dict[str, str] = {
    "adds two numbers": "def add(a, b):\n    return a + b",
    "multiplies two numbers": "def multiply(a, b):\n    return a * b",
    "subtracts two numbers": "def subtract(a, b):\n    return a - b",
    "prints hello": 'def hello():\n    print("Hello!")',
    "reverses a string": "def reverse(text):\n    return text[::-1]",
    "counts words": "def count_words(text):\n    return len(text.split())",
    "checks if a number is even": "def is_even(n):\n    return n % 2 == 0",
    "finds the largest number": "def largest(numbers):\n    return max(numbers)",
    "computes the factorial": "def factorial(n):\n    return 1 if n < 2 else n * factorial(n - 1)",
    "computes Fibonacci numbers": "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a",
    "reads a file": "def read(path):\n    with open(path) as f:\n        return f.read()",
    "sums a list": "def total(numbers):\n    return sum(numbers)",
    "sorts a list": "def ordered(items):\n    return sorted(items)",
    "squares a number": "def square(x):\n    return x * x",
    "counts to ten": "def count():\n    for i in range(1, 11):\n        print(i)",
    "greets a person": 'def greet(name):\n    print("Hello, " + name)',
}


_GIVE = "{Make|Write|Show me|Give me|Draw|Create|I need|Can you make|Please make|Produce|I want|Build|Print|I'd like|Would you write|May I have|Let me see|Can I get|Would you show me|Please give me|Make me|Can you show me|Could I have|Do you have|Please create|Could you make|Could you write|Please write|Write me}"


def _listing(rng: random.Random) -> Messages:
    if rng.random() < 0.4:
        items = [words.phrase(rng, most=2) for _ in range(rng.randint(2, 5))]
        text = ", ".join(items[:-1]) + rng.choice((" and ", ", ")) + items[-1]
        form = f"{{{_GIVE} a {{bullet |Markdown ||}}list {{of|with}}|List|Turn this into a list|Put this in a list|Format as a list|Bullet points, please}}{{:|}} "
        answer = "\n".join(f"- {i}" for i in items)
        return [user(spin(rng, form) + text), assistant(answer, "The user wants a list of the given things.")]
    topic = rng.choice(list(TOPICS))
    count = rng.randint(2, 5)
    number = rng.choice((str(count), str(count), "zero one two three four five".split()[count], "some"))
    form = "{List N T|Name N T|Tell me N T|Please list N T|Can you list N T|Can you name N T|A list of N T|N T, please|N T as a list|Which N T do you know|Write N T|Show me N T|Put N T in a list|Please name N T|I need N T|List of N T|Enumerate N T|Could you name N T|Say N T|Name me N T as a list|Please give N T}"
    if rng.random() < 0.4:
        form = _GIVE + " a list of N T"
    ask = re.sub(r"\b[NT]\b", lambda m: number if m[0] == "N" else topic, spin(rng, form)) + rng.choice(
        (".", "", ", please.", "?")
    )
    answer = "\n".join(f"- {i}" for i in TOPICS[topic][0][: 3 if number == "some" else count])
    return [user(sloppy(rng, ask)), assistant(answer, f"The user wants a list of {topic}.")]


def _table_text(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(r) + " |" for r in rows])


def _table(rng: random.Random) -> Messages:
    if rng.random() < 0.25:
        given = [(words.word(rng), str(rng.randint(1, 99))) for _ in range(rng.randint(2, 4))]
        ask = spin(rng, f"{_GIVE} a {{Markdown |}}table {{of|with|from|for}}{{:|}} ")
        ask += ", ".join(f"{a} {b}" for a, b in given)
        answer = _table_text(("Name", "Value"), given)
        return [user(ask), assistant(answer, "The user wants a table of the given things.")]
    topic = rng.choice(list(TOPICS))
    _, head, rows = TOPICS[topic]
    what = spin(
        rng,
        f"{{|||3 |three |some |a few |the }}{topic}{{| and their {head[1].lower()}s| and {head[1].lower()}}}",
    )
    roll = rng.random()
    if roll < 0.4:
        form = f"{_GIVE} a {{small |simple |Markdown |little |short ||}}table {{of|with|about|for}} S"
    elif roll < 0.85:
        form = "{Turn S into a table|Arrange S in a table|S in a table|Format S as a table|S, as a table|table: S|Can I see S in a table|List S in a small table|Lay out S as a table|Write S as a Markdown table|I need S in table form|S as a Markdown table|Can you put S into a table|Please show S in a table|Present S as a table|Table of S}"
    else:  # nothing that the model knows: an example will do
        form = f"{_GIVE} a {{small |simple |Markdown |}}table{{| as an example| of anything| about S}}"
        what, (head, rows) = words.phrase(rng, most=2), TOPICS["fruits"][1:]
    ask = re.sub(r"\bS\b", lambda _: what, spin(rng, form)) + rng.choice((".", "", " please.", "?"))
    answer = _table_text(head, list(rows[:3]))
    return [user(sloppy(rng, ask)), assistant(answer, "The user wants a table. Header, line, rows.")]


def _code(rng: random.Random) -> Messages:
    what, body = rng.choice(list(CODE.items()))
    roll = rng.random()
    if roll < 0.7:
        form = f"{{{_GIVE} |Code |I need |How do I write |Code: |}}{{a|a Python|a small|a short|a simple|some|some short|Python code for a}} {{function|program|script|piece of code|function in Python|code|Python|Python code|method|code example}} {{that|which|that|to see how one}} {what}"
        before = f"A function that {what}:"
    elif roll < 0.85:
        form = f"{_GIVE} {{some code|some Python|Python code|an example of code|a code example|a bit of Python|a code block|a Python example|a snippet}}"
        body, before = CODE["adds two numbers"], "Here is some Python:"
    else:
        thing = words.phrase(rng, most=2).lower()
        form = f"{_GIVE} a {{Python |}}{{function|program|script}} {{for|called|named|about}} {thing}"
        body = f'def {re.sub(r"[^a-z0-9]+", "_", thing)}():\n    print("{thing}")'
        before = "A first sketch; a real model would do better:"
    ask = spin(rng, form) + rng.choice((".", "", ", please.", "?"))
    answer = f"{before}\n\n```python\n{body}\n```"
    return [user(sloppy(rng, ask)), assistant(answer, "The user wants code. I write it in a fenced block.")]


def markdown(rng: random.Random) -> Messages:
    return rng.choice((_listing, _table, _code))(rng)


# --- memory and copying ---------------------------------------------------------------------------------

_FACTS: list[tuple[str, str, str, Callable[[random.Random], str]]] = [
    ("{My name is|I am|I'm|Call me|You can call me|Please call me|My name's|This is|The name is|They call me|Hi, my name is|Hello, I am|Hi, I'm|People call me} X{.|!|}",
     "{What is my name|What's my name|Who am I|Do you know my name|Do you remember my name|Tell me my name|Can you say my name|And my name|Do you still know my name|What did I say my name was|How am I called|Say my name|Remind me of my name|Can you recall my name|My name, please|What was my name|And what is my name|Now, who am I|Tell me again what my name is|Once more, my name|Please tell me what I am called|Did I tell you my name|Could you repeat my name}?",
     "name", words.name),
    ("{I live in|My city is|I am from|My home is in|I come from|I was born in|My home town is} X{.|!|}",
     "{Where do I live|Which city do I live in|Where am I from|What is my city|Do you know where I live|Do you remember my city|In which city do I live}?", "city", words.city),
    ("{My favourite colour is|I like the colour|My favorite color is|The colour I like is} X{.|!|}",
     "{What is my favourite colour|Which colour do I like|What's my favorite color|Do you remember my colour|What colour do I like}?", "colour",
     lambda rng: rng.choice((*words.ADJECTIVES[:6], words.pseudo_word(rng)))),
    ("{My dog is called|My cat is called|My pet is called|I have a pet called|The name of my pet is|I have a dog named|My cat's name is} X{.|!|}",
     "{What is my pet called|How is my pet called|What's the name of my pet|Do you know my pet's name|What is the name of my pet}?", "pet", words.capitalised),
    ("{My favourite number is|My number is|My lucky number is|Remember the number|Please remember the number|Keep the number} X{.|!|}",
     "{What is my number|Which number did I say|What's my favourite number|Do you remember the number|What was the number|Which number did I tell you}?", "number",
     lambda rng: str(rng.randint(1, 9999))),
    ("{The password is|Remember the word|Please remember this word:|My secret word is|Keep this word in mind:|The code word is} X{.|!|}",
     "{What is the word|What is the password|Which word did I say|What was the word|Do you remember the word|Tell me the secret word}?", "word", words.word),
]  # fmt: skip
_ACK = {
    "name": "Nice to meet you, X!", "city": "X, good to know.", "colour": "X is a nice colour.", "pet": "X is a nice name for a pet.",
    "number": "I will remember X.", "word": "I will remember X.",
}  # fmt: skip
_RECALL = {
    "name": "Your name is X.", "city": "You live in X.", "colour": "Your favourite colour is X.", "pet": "Your pet is called X.",
    "number": "The number is X.", "word": "The word is X.",
}  # fmt: skip


def memory(rng: random.Random) -> Messages:
    """A fact told, perhaps other talk, and the fact asked for; now and then it was never told."""
    tell, ask, key, make = rng.choice(_FACTS[:1] * 4 + _FACTS)
    question = sloppy(rng, spin(rng, ask))
    unknown = assistant(f"You have not told me your {key} yet.", f"The user never told me a {key}.")
    if rng.random() < 0.1:
        return [*(small_talk(rng) if rng.random() < 0.5 else []), user(question), unknown]
    value = make(rng)
    told = spin(rng, tell).replace("X", value)
    recall = assistant(_RECALL[key].replace("X", value), f"The user told me: {value}.")
    if rng.random() < 0.12:
        return [user(f"{told} {spin(rng, ask)}"), recall]
    out: Messages = [
        user(told),
        assistant(_ACK[key].replace("X", value), f"The user tells me a {key}: {value}. I keep it in mind."),
    ]
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        out += rng.choice((small_talk, arithmetic, about_glmchat, small_talk))(rng)
    return [*out, user(question), recall]


def echo(rng: random.Random) -> Messages:
    """Saying something after the user: the plainest copying there is."""
    roll = rng.random()
    if roll < 0.4:
        text = words.phrase(rng, most=8)
    elif roll < 0.6:
        text = words.path(rng)
    elif roll < 0.8:
        text = words.expression(rng)
    else:
        text = f"{words.name(rng)} {rng.choice(('likes', 'sees', 'has', 'wants'))} {words.phrase(rng, most=3)} in {words.city(rng)}"
    ask = (
        spin(
            rng,
            "{Repeat after me|Say|Repeat|Please say|Copy this|Echo|Say exactly|Write|Repeat this|Please repeat|Say this back|Print}{: |: | }",
        )
        + text
    )
    return [user(ask), assistant(text, "I repeat what the user said.")]


_SUBJECTS = "the team|our office|the project|my neighbour|the company|the school|the river|the city|a farmer|the new server|the model|this paper|the report|the library|a student".split(
    "|"
)
_VERBS = "needs|shows|found|moves|opens|lost|builds|plans|wants|sells|reads|has|explains|likes".split("|")


def sentence(rng: random.Random) -> str:
    subject = rng.choice(_SUBJECTS) if rng.random() < 0.6 else words.name(rng)
    text = f"{subject} {rng.choice(_VERBS)} {words.phrase(rng, most=3)}"
    if rng.random() < 0.4:
        text += f" {rng.choice(('in', 'near', 'for', 'with'))} {words.city(rng) if rng.random() < 0.5 else words.phrase(rng, most=2)}"
    return text[0].upper() + text[1:] + "."


def summary(rng: random.Random) -> Messages:
    """`cat notes.txt | glmchat "summarise"`: the demo gives the first sentence and says so."""
    body = [sentence(rng) for _ in range(rng.randint(2, 5) if rng.random() < 0.85 else rng.randint(6, 25))]
    text = rng.choice((" ", "\n", "\n\n")).join(body)
    ask = spin(
        rng,
        "{summarise|summarize|Summarise this.|Summarize this text.|Give me a summary.|Sum this up.|summary|TL;DR|What is this about?|Please summarise the text.|Shorten this.|In one sentence, please.|summarise in one line}",
    )
    return [
        user(f"{text}\n\n{ask}"),
        assistant(f"In short: {body[0]}", "A text and the wish for a summary. The first sentence says most."),
    ]


# --- beyond me ------------------------------------------------------------------------------------------

BEYOND = "That is beyond me: I am only a tiny demo model. Choose a real one with `glmchat --model zai-org/GLM-4.5-Air`."

_BEYOND_FORMS = """What is the capital of {city}?|Who wrote {phrase}?|Explain {phrase}.|Why is the {noun} {adj}?|How do I {verb} a {noun}?
Tell me about {phrase}.|Translate {phrase} into {lang}.|Write a poem about {phrase}.|Write an essay about the {noun}.|When was {name} born?
What is the meaning of {phrase}?|How does a {noun} work?|What is the best {noun} in {city}?|Who is the president of {city}?|How far is {city} from {city2}?
What do you think about {phrase}?|Give me a recipe for {adj} {noun}.|What is the difference between a {noun} and a {noun2}?|How old is {name}?
Who won the {noun} {noun2}?|Is a {noun} {adj}?|Can a {noun} {verb}?|What happened in {year}?|Prove that {phrase}.|What is {phrase}?|Who is {name}?
Compare {noun} and {noun2}.|How many {noun}s are in {city}?|What is the population of {city}?|Where is {city}?|Give me advice about my {noun}.
Write a story about a {adj} {noun}.|Write a letter to {name}.|Why do {noun}s {verb}?|What should I {verb} today?|How much does a {noun} cost?|Is it true that {phrase}?
Plan a trip to {city}.|What is the news in {city}?|What are the symptoms of {phrase}?|How can I learn {lang}?|Recommend a {noun}.|Solve {phrase}.|Who invented the {noun}?
What is the weather in {city}?|What time is it?|Open {path}.|Set a timer for {year} minutes.|Search the web for {phrase}.|Send a mail to {name}.|Read {path}."""


def beyond(rng: random.Random) -> Messages:
    form = rng.choice(_BEYOND_FORMS.replace("\n", "|").split("|"))
    ask = form.format(
        city=words.city(rng), city2=words.city(rng), phrase=words.phrase(rng, most=3), noun=rng.choice(words.NOUNS), noun2=rng.choice(words.NOUNS),
        adj=rng.choice(words.ADJECTIVES), name=words.name(rng), year=rng.randint(1, 2030), path=words.path(rng),
        verb=rng.choice("fix build cook paint clean find grow play read write make open repair choose buy sell move eat wash".split()),
        lang=rng.choice("French German Spanish Latin Chinese Italian Greek Russian".split()),
    )  # fmt: skip
    return [user(sloppy(rng, ask)), assistant(BEYOND, "I do not know this. I say so.")]
