"""Word lists and generators of values, split into what training sees and what evaluation holds out.

`HELD` values never reach a training dialogue (`training.evaluate` asserts it). A value's spelling is made
of the same byte-pair pieces either way: what is measured is whether the model copies, not whether it knows.
"""

from __future__ import annotations

import random

CITIES = """Paris London Berlin Madrid Rome Vienna Prague Warsaw Lisbon Dublin Athens Helsinki Budapest Zurich Geneva
Milan Naples Turin Lyon Nice Bordeaux Hamburg Munich Cologne Frankfurt Leipzig Dresden Seville Valencia Bilbao Porto
Antwerp Ghent Rotterdam Utrecht Krakow Gdansk Sofia Bucharest Belgrade Zagreb Tallinn Riga Vilnius Minsk Kyiv Odessa
Moscow Kazan Istanbul Ankara Izmir Cairo Tunis Algiers Rabat Casablanca Lagos Accra Dakar Kampala Kigali Harare Lusaka
Durban Pretoria Dubai Doha Riyadh Baghdad Tehran Kabul Karachi Lahore Delhi Mumbai Chennai Pune Jaipur Kolkata Dhaka
Bangkok Hanoi Manila Jakarta Singapore Taipei Beijing Shanghai Shenzhen Wuhan Chengdu Tokyo Kyoto Nagoya Sapporo Seoul
Busan Sydney Perth Brisbane Adelaide Auckland Boston Chicago Denver Dallas Houston Austin Miami Atlanta Detroit Seattle
Portland Phoenix Toronto Montreal Ottawa Calgary Havana Panama Bogota Quito Lima Santiago Caracas Recife Salvador""".split()
CITIES += [
    "New York",
    "Los Angeles",
    "San Diego",
    "Hong Kong",
    "Buenos Aires",
    "Cape Town",
    "Tel Aviv",
    "Kuala Lumpur",
]
HELD_CITIES = """Oslo Stockholm Copenhagen Brussels Amsterdam Glasgow Edinburgh Marseille Palermo Reykjavik Bergen Nairobi
Marrakesh Osaka Fukuoka Melbourne Wellington Vancouver Winnipeg Philadelphia Baltimore Cleveland Bristol Nottingham
Stuttgart Salzburg Innsbruck Granada Malaga Tbilisi""".split()
HELD_CITIES += ["Rio de Janeiro", "San Francisco", "Addis Ababa", "Las Vegas"]

ZH_CITIES = "北京 上海 广州 深圳 成都 武汉 西安 南京 天津 重庆 长沙 青岛 大连 厦门 昆明 郑州".split()
HELD_ZH_CITIES = "杭州 苏州 哈尔滨 济南".split()

NAMES = """Anna Ben Clara David Emma Felix Grace Henry Ida Jack Kate Leo Mia Noah Olivia Paul Rosa Sam Tina Victor
Wendy Adam Bella Carl Diana Eric Fiona George Hannah Ivan Julia Kevin Laura Mark Nina Oscar Peter Rachel Simon Tom
Vera Will Zoe Alice Bob Carol Daniel Elena Frank Gina Hugo Irene James Karen Luis Maria Nick Olga Pablo Ruth Sofia
Thomas Ursula Walter Yara Ali Amir Aisha Chen Wei Ming Ling Yuki Hiro Kenji Priya Ravi Anil Fatima Omar Leila Hassan
Ingrid Lars Sven Astrid Bruno Marta Jan Eva Milan Petra Tomas Dmitri Natasha Igor Kofi Ama Zuri Jabari Tariq Nadia""".split()
HELD_NAMES = """Gustav Matilda Rupert Beatrice Florian Saskia Magnus Henrietta Cedric Philippa Ottavio Brigitte Yusuf
Sakura Bartholomew Annika Desmond Rosalind Quentin Tabitha Lorenzo Miriam Casper Harriet""".split()

NOUNS = """apple book car door engine flower garden house island jacket kitchen lamp mirror notebook orange pencil queen river
stone table umbrella village window yellow animal bridge castle doctor eagle forest guitar hammer insect jungle kettle
ladder mountain needle ocean palace rabbit school tiger valley wagon balloon candle desert elephant farmer glass harbor
iron jewel king lemon market night olive piano quarter rocket shadow tower uncle violin winter box cloud dream energy
field gold hill ice juice key leaf moon nest oil paper road salt tree water bird cat dog fish horse lion mouse owl
pig sheep wolf bread butter cheese egg honey milk rice soup sugar tea coffee chair bed wall floor roof clock phone radio
camera train plane ship boat bike bus truck ticket map letter story song poem picture color music game sport team
player coach ball goal race prize medal army soldier battle peace law court judge crime prison police bank money coin
price shop store office factory worker machine tool wheel battery wire signal screen keyboard printer robot planet star
galaxy comet gravity light sound heat motion atom cell blood heart brain bone muscle skin hand foot eye ear nose mouth
recipe pasta pizza salad cake cookie chocolate vanilla pepper garlic onion tomato potato carrot bean corn wheat grape
history science physics chemistry biology geography language grammar logic number letter word sentence page chapter
budget invoice report meeting project schedule task reminder alarm calendar contact address account password profile
backup folder archive document image video audio playlist album track volume brightness channel speed level temperature""".split()
ADJECTIVES = """red blue green black white big small old new young fast slow hot cold warm cool soft hard bright dark light heavy
quiet loud clean dirty rich poor early late long short deep wide narrow sweet sour bitter fresh dry wet simple strange
happy sad angry calm brave clever funny gentle honest kind lazy noble polite proud quick rare safe silly smart strong
weak wild wise ancient modern local global public private secret special urgent daily weekly annual main final""".split()
HELD_WORDS = """quantum volcano penguin bicycle orchestra lighthouse cinnamon hurricane telescope dinosaur microscope
saxophone avalanche porcelain trampoline chandelier marathon blueberry sapphire glacier architecture renaissance
photosynthesis espresso labyrinth origami tapestry blizzard cathedral parachute submarine meteorite knitting
astronomy ballet bagpipe mushroom pottery ukulele waterfall""".split()
HELD_ADJECTIVES = "purple crimson gigantic wooden electric magnetic tropical medieval".split()

LABELS = """tea eggs pasta rice break laundry oven pizza bread nap workout meeting call cake coffee lunch dinner study
reading stretch homework chicken soup dishes cookies plants walk run yoga shower parking bus cleaning music dough""".split()
HELD_LABELS = (
    "noodles lasagna meditation sourdough stretching marinade rehearsal interview violinist gnocchi".split()
)

STEMS = """main app index config utils readme notes todo data report test setup model server client budget summary plan
draft list log output input results table letter thesis invoice diary script build install license changes image""".split()
HELD_STEMS = (
    "changelog holiday journal inventory tokenizer manifest receipts pipeline homework parser".split()
)
FOLDERS = "src docs lib tests data home tmp etc var config assets public bin scripts build notes work projects".split()
HELD_FOLDERS = "backend archive uploads modules taxes".split()
EXTENSIONS = "txt md py json csv log toml yaml html js c rs sh cfg ini xml".split()

_ONSETS = (
    "b c d f g h j k l m n p r s t v w z br ch cl cr dr fl fr gl gr pl pr qu sh sl sp st str th tr wh".split()
)
_VOWELS = "a e i o u a e i o ai ea ee oo ou ia io".split()
_CODAS = "b ck d g l m n p r s t x nd ng nt rk rn st sh ll ss".split() + [""] * 8


def pseudo_word(rng: random.Random) -> str:
    """A word nobody has seen, of 1 to 4 syllables, now and then capitalised."""
    return "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
        for _ in range(rng.choice((1, 1, 2, 2, 2, 2, 3)))
    )


def word(rng: random.Random, *, held: bool = False) -> str:
    """A common word, or in training one word in three made up."""
    if held:
        return rng.choice(HELD_WORDS)
    roll = rng.random()
    if roll < 0.40:
        return pseudo_word(rng)
    return rng.choice(NOUNS if roll < 0.85 else ADJECTIVES)


def capitalised(rng: random.Random) -> str:
    return pseudo_word(rng).capitalize()


def city(rng: random.Random, *, held: bool = False) -> str:
    if held:
        return rng.choice(HELD_CITIES)
    if rng.random() < 0.5:
        name = capitalised(rng)
        return f"{name} {capitalised(rng)}" if rng.random() < 0.15 else name
    return rng.choice(CITIES)


def name(rng: random.Random, *, held: bool = False) -> str:
    if held:
        return rng.choice(HELD_NAMES)
    return capitalised(rng) if rng.random() < 0.5 else rng.choice(NAMES)


def phrase(rng: random.Random, *, held: bool = False, most: int = 4) -> str:
    """One to `most` words, as people type into a search box."""
    count = rng.randint(1, most)
    if held:
        parts = [rng.choice(HELD_WORDS) for _ in range(count)]
        if count > 1 and rng.random() < 0.5:
            parts[0] = rng.choice(HELD_ADJECTIVES)
        return " ".join(parts)
    parts = [word(rng) for _ in range(count)]
    if rng.random() < 0.15:
        parts[0] = parts[0].capitalize()
    if rng.random() < 0.08:
        parts.insert(rng.randrange(len(parts) + 1), str(rng.randint(1, 2030)))
    if count > 2 and rng.random() < 0.3:
        parts[1] = rng.choice(("of", "and", "for", "in", "the", "to", "with"))
    return " ".join(parts)


def path(rng: random.Random, *, held: bool = False) -> str:
    stems, folders = (HELD_STEMS, HELD_FOLDERS) if held else (STEMS, FOLDERS)
    stem = rng.choice(stems)
    if not held and rng.random() < 0.5:
        stem = pseudo_word(rng)
    if rng.random() < 0.2:
        stem += rng.choice("_-") + (rng.choice(stems) if rng.random() < 0.6 else str(rng.randint(1, 99)))
    parts = [
        rng.choice(folders) if held or rng.random() < 0.7 else pseudo_word(rng)
        for _ in range(rng.choice((0, 0, 1, 1, 2)))
    ]
    lead = rng.choice(("", "", "", "/", "./", "~/")) if parts else ""
    return lead + "/".join([*parts, f"{stem}.{rng.choice(EXTENSIONS)}"])


def label(rng: random.Random, *, held: bool = False) -> str:
    if held:
        return rng.choice(HELD_LABELS)
    return rng.choice(LABELS) if rng.random() < 0.5 else phrase(rng, most=2)


def integer(rng: random.Random) -> int:
    return rng.choice((rng.randint(1, 12), rng.randint(1, 99), rng.randint(1, 99), rng.randint(100, 9999)))


def expression(rng: random.Random) -> str:
    """An arithmetic expression of 2 to 4 numbers, long enough that a calculator is the right tool."""
    space = "" if rng.random() < 0.15 else " "
    out = str(integer(rng))
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3))):
        out += f"{space}{rng.choice('+-*/+-*')}{space}{integer(rng)}"
        if rng.random() < 0.12:
            out = f"({out})"
    if rng.random() < 0.06:
        out = f"sqrt({integer(rng)})"
    return out
