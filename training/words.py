"""Word lists and generators of values, split into what training sees and what evaluation holds out.

`HELD` values never reach a training dialogue (`training.evaluate` asserts it). A value's spelling is made
of the same byte-pair pieces either way: what is measured is whether the model copies, not whether it knows.

A token that never stands in a value is never copied either: its logit is only ever pushed down. So words
come from a wide lexicon and from halves of its words glued together, until every piece has been a value.
"""

from __future__ import annotations

import random
import re
import string
from pathlib import Path
from unicodedata import ucd_3_2_0

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

EVERYDAY = """about above across after again against agree alone already also always another answer anybody appear area argue
around arrive article aside asleep attack attempt average avoid awake award baby background badge bakery balance bank basic basket
bath beach beautiful because become before begin behind believe below beside better between beyond bill birthday bite blanket block
board body bold border boring borrow bottle bottom bowl branch breakfast breath brick brief bring broken brother brush bubble bucket
burn business busy button cabin cable calm camp candy capital captain card care carry case cattle cause ceiling center central certain
chain chance change chapter cheap check cheerful cherry chest chief child choice choose circle citizen class clay clear climate climb
close cloth coast collect college comfort common complete concert condition connect consider contain content continue control cool corner
correct cotton couple course cousin cover crazy cream create cross crowd cruel cupboard curious current curtain curve custom damage dance
danger daughter dead deal decide deer degree delay deliver depend describe design detail develop different difficult dinner direct discover
distance divide dollar double doubt dozen drawer dress drink drive drop during dust duty eager earn earth east edge effect effort either
elbow else employ empty enemy enjoy enough enter entire equal escape even event every exact example except excited exercise expect expensive
explain express extra face fail fair faith false family famous fashion father fault favor feather feature fellow fence fever figure
final finger finish first fix flag flat flavor float flood floor flour follow food foolish force foreign forget fork form former forward
found free freedom friend front frozen fruit full function future gain gather gentle giant gift give globe grand grass gray great green
ground group grow guard guess guest guide habit half handle happen harm harvest hate heaven heavy height hello help hidden high hobby
hold hole holiday hope hotel hour human humor hunger hurry husband idea ideal imagine include indeed inform inside instead interest invite
island item join journey joy jump just keen keep kilometer kind kiss knife knock know labor lady lake large last laugh lawyer layer lazy
lead learn least leather leave left lend lesson level liberty library lift like limit liquid listen little lonely loose lose love lucky
magazine mail make manage manner many march mark marry master match material matter maybe meal mean measure meat member memory mention
method middle might mile mind minor minute miss mistake mixture model moment monkey month moral more morning most mother motor move much
mystery narrow nation nature near neat necessary neck neighbor neither nerve never news next nobody noise north note nothing notice number
obey object observe obtain occur offer often once only open opinion opposite other ought outside oven over owner pack pain paint pair
parcel parent park part partner party pass past path patient pattern pause peace people perfect perhaps period person petrol photo pick
piece pile pillow pink pipe place plain plan plastic plate play please plenty pocket point poison pole police pool popular position possible
potato pour powder power practice prefer prepare present press pretty prevent print private problem process produce promise proper protect
prove provide public pull pump pupil pure purpose push quality question quiet quite rain raise rather reach read ready real reason receive
recent record reduce refuse regular relative remain remember remove repair repeat reply require reserve respect rest result return review
reward ribbon ride right ring rise risk rough round rubber rude rule ruler rush sail sailor sample sand satisfy scale scatter scene scissors
score search seat second seed seem seldom select sell send senior separate serious serve settle seven several severe shade shake shame shape
share sharp sheet shelf shell shelter shine shirt shock shoe shoot short shoulder shout shower shut sick side sight silence silk silver
similar since sister size skill skirt sleep slip slope smell smile smoke smooth snake soap social society sock solid solve some soon sort
source south space spare speak special spell spend spider spin spirit spoon spot spread spring square stage stamp stand start state station
stay steal steam steel step stick still stir stomach stop store storm strange stream street stretch strike string struggle student style
subject succeed such sudden suffer suggest suit supply support suppose sure surface surprise swallow sweep swim sword system table tail take
talent talk tall taste taxi teach team tear temple tend tent than thank theater there thick thief thin thing think thirst those though
thousand thread throat through throw thumb ticket tight till title today together toilet tomorrow tongue tooth total touch tour toward towel
trade traffic train travel treasure treat trial trick trip trouble trousers trust turn twelve twice twist type under union unit until upper
upset urge useful usual vacation value various vegetable version very victory view visit voice volume vote voyage wage waist wait wake
walk wander want warn waste watch wave weak wealth weapon wear weather wedding week weigh welcome well west whale wheat where whether
while whisper whistle whole wide wife will wing wisdom wish within without wonder wood wool work world worry worth wound wrap wreck write
yard year yesterday yet youth zebra zero zone""".split()

HELD_TERMS = frozenset("""restaurant guests passage tongue recipient subject amount currency artist shuffle chamber percentage
ticker pickup destination filename quality dice faces liters statement headline hashtag celsius duration portion snack service
replicas cipher carpet intensity translate sentence email colleague convert stream album dim lookup stock hire taxi compress
roll query database summon elevator deck tweet heat sauna feed hamster deploy encrypt vacuum deed witness kiosk hours repository
dentist weekday dataset bins passcode episode pixels hostname retries""".split())  # fmt: skip
"""What the tools of the evaluation are named with: these words name no tool and no parameter in training."""


_HELD = {
    w.lower()
    for words in (HELD_CITIES, HELD_NAMES, HELD_WORDS, HELD_ADJECTIVES, HELD_LABELS, HELD_STEMS, HELD_FOLDERS)
    for w in words
}


def _lexicon() -> list[str]:
    """Some 4,500 lower-case words, without what is held out: the lists above; what this folder's own
    sentences are made of, as nearly every token must also be met in a value; and the words in the names
    of Unicode 3.2's characters, which come with every Python."""
    held = _HELD | HELD_TERMS
    lists = [*CITIES, *NAMES, *NOUNS, *ADJECTIVES, *LABELS, *STEMS, *FOLDERS, *EVERYDAY]
    here = Path(__file__).parent
    sentences = " ".join((here / f).read_text(encoding="utf-8") for f in ("talk.py", "toolbox.py"))
    names = (ucd_3_2_0.name(chr(i), "") for i in range(0x20000))
    characters = (w for n in names if not n.startswith(("CJK", "HANGUL", "YI ")) for w in n.split())
    words = dict.fromkeys(
        w.lower()
        for w in [*lists, *re.findall(r"[A-Za-z]+", sentences), *characters]
        if re.fullmatch(r"[A-Za-z]{3,12}", w)
    )
    return [w for w in words if w not in held]


LEXICON = _lexicon()

_ONSETS = (
    "b c d f g h j k l m n p r s t v w z br ch cl cr dr fl fr gl gr pl pr qu sh sl sp st str th tr wh".split()
)
_VOWELS = "a e i o u a e i o ai ea ee oo ou ia io".split()
_CODAS = "b ck d g l m n p r s t x nd ng nt rk rn st sh ll ss".split() + [""] * 8


def pseudo_word(rng: random.Random) -> str:
    """A word that need not exist: syllables, two halves of real words, or one from the lexicon."""
    while True:
        roll = rng.random()
        if roll < 0.3:
            made = "".join(
                rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
                for _ in range(rng.choice((1, 1, 2, 2, 2, 2, 3)))
            )
        elif roll < 0.6:
            head, tail = rng.choice(LEXICON), rng.choice(LEXICON)
            made = head[: rng.randint(1, 6)] + tail[-rng.randint(1, 6) :]
        else:
            made = rng.choice(LEXICON)
        if rng.random() < 0.12:  # q, v and z begin few words, and must be copied as well as any other
            made = rng.choice(string.ascii_lowercase) + made[1:]
        if made not in _HELD and made not in HELD_TERMS:
            return made


def word(rng: random.Random, *, held: bool = False) -> str:
    """A common word, or in training oftener than not a rare or made-up one."""
    if held:
        return rng.choice(HELD_WORDS)
    roll = rng.random()
    if roll < 0.6:
        return pseudo_word(rng)
    return rng.choice(NOUNS if roll < 0.9 else ADJECTIVES)


def capitalised(rng: random.Random) -> str:
    return pseudo_word(rng).capitalize()


_PLACE_FORMS = """San {}|Santa {}|New {}|Port {}|Saint {}|El {}|La {}|Los {}|Las {}|Le {}|Fort {}|North {}|{} City|{} Beach|{} Falls|{} {}|{} {}
{} {}|{} am {}|{} de {}|{} on {}|{} del {}|{}-{}|{} {} {}|St. {}|Mount {}|Lake {}|Upper {}|{} Bay|Rio {}|Ciudad {}|Villa {}|Bad {}""".replace(
    "\n", "|"
).split("|")


def city(rng: random.Random, *, held: bool = False) -> str:
    if held:
        return rng.choice(HELD_CITIES)
    roll = rng.random()
    if roll < 0.3:
        return rng.choice(CITIES)
    if roll < 0.7:
        return capitalised(rng)
    while True:
        made = re.sub(r"\{\}", lambda _: capitalised(rng), rng.choice(_PLACE_FORMS))
        if made not in HELD_CITIES:
            return made


def name(rng: random.Random, *, held: bool = False) -> str:
    if held:
        return rng.choice(HELD_NAMES)
    return capitalised(rng) if rng.random() < 0.6 else rng.choice(NAMES)


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
        parts[1] = rng.choice(("of", "and", "for", "in", "the", "to", "with", "a", "on", "is"))
    return " ".join(parts)


def path(rng: random.Random, *, held: bool = False) -> str:
    stems, folders = (HELD_STEMS, HELD_FOLDERS) if held else (STEMS, FOLDERS)
    stem = rng.choice(stems)
    if not held and rng.random() < 0.6:
        stem = pseudo_word(rng)
    if rng.random() < 0.2:
        stem += rng.choice("_-") + (rng.choice(stems) if rng.random() < 0.6 else str(rng.randint(1, 99)))
    parts = [
        rng.choice(folders) if held or rng.random() < 0.6 else pseudo_word(rng)
        for _ in range(rng.choice((0, 0, 1, 1, 2)))
    ]
    lead = rng.choice(("", "", "", "/", "./", "~/")) if parts else ""
    return lead + "/".join([*parts, f"{stem}.{rng.choice(EXTENSIONS)}"])


def label(rng: random.Random, *, held: bool = False) -> str:
    if held:
        return rng.choice(HELD_LABELS)
    return rng.choice(LABELS) if rng.random() < 0.35 else phrase(rng, most=2)


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
