"""Our own task families: what is asked, in which words, and what is right.

A family draws *items* (two numbers to add, four to sort) and asks for them in one of several
*phrasings*. Some phrasings are held out: players and deciders never train on them, so that what is
measured on them is the skill and not the template. Some families are reserved: deciders never
train on them at all, though a player may.

The answers are short and every family but the facts has thousands of items or more, since a CPU
trains on few tokens a second and a test set must not repeat what was trained on.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from random import Random

from .graders import Exact, Grader, Mention, Number, Sentence, Series


@cache
def _written(name: str) -> Mapping[str, tuple[str, ...]]:
    """Phrasings that are kept in a file of this package, by family or chain."""
    text = files("training").joinpath(f"{name}.toml").read_text(encoding="utf-8")
    return {of: tuple(phrasings) for of, phrasings in tomllib.loads(text).items()}


@dataclass(frozen=True, slots=True)
class Item:
    """What is asked, in no words yet."""

    key: str
    """Equal for items that are the same question, such as 3 + 4 and 4 + 3."""
    fields: Mapping[str, str]
    """What goes into the blanks of a phrasing."""
    answer: str
    """What a player is taught to write."""
    grader: Grader
    alone: Mapping[str, str] = field(default_factory=dict)
    """Of a later part of a chain: what its own family's phrasings need beside the fields, with what
    the part before gives."""


FEW = (25, 20, 55)
"""Shares of a family of a few hundred items, so that a test on them says something."""


class _Worded:
    """A kind of question, of which there are more phrasings in files of this package."""

    __slots__ = ()
    name: str

    @property
    def varied(self) -> tuple[str, ...]:
        """More phrasings to train on, for who learns whom to ask: by what is asked, not by how."""
        return _written("varied").get(self.name, ())

    @property
    def sealed(self) -> tuple[str, ...]:
        """Neither trained on nor read by who chooses what is: for one last measurement."""
        return _written("sealed").get(self.name, ())


@dataclass(frozen=True, slots=True)
class Family(_Worded):
    """One kind of question."""

    name: str
    draw: Callable[[Random], Item]
    phrasings: tuple[str, ...]
    held_out: tuple[str, ...]
    """Never trained on."""
    reserved: bool = False
    """Whether deciders never train on it."""
    dealt_as: str = ""
    """The family whose splits it shares, since its items are the same; its own if empty."""
    shares: tuple[int, int, int] = (60, 15, 25)
    """Percent of its items for training, validation and test."""


@dataclass(frozen=True, slots=True)
class Chain(_Worded):
    """Families in sequence: each part needs what the one before gives.

    A later part's workers find that in the reply that they read, so what they are asked speaks of
    it in words and never says it.
    """

    name: str
    draw: Callable[[Random], tuple[Item, ...]]
    """An item of each part, with the key that it has in its family; the last one's grader is the
    chain's. Together their fields fill the blanks of every phrasing and ask."""
    phrasings: tuple[str, ...]
    held_out: tuple[str, ...]
    parts: tuple[str, ...]
    """Families of the parts, 2 or more."""
    asks: tuple[tuple[str, ...], ...]
    """Of each part: how a plan may word it."""
    reserved: bool = False
    """Whether deciders never train on it."""


# --- numbers --------------------------------------------------------------------------------------


def _addition(random: Random, most: int = 99) -> Item:
    a, b = random.randint(10, most), random.randint(10, most)
    key = f"{min(a, b)} {max(a, b)}"
    return Item(key, {"a": str(a), "b": str(b)}, str(a + b), Number(str(a + b)))


def _story(random: Random) -> Item:
    """A sum in words; the same two numbers are the same item whoever has them."""
    item = _addition(random)
    who, things = random.choice(_NAMES), random.choice(_THINGS)
    return Item(item.key, {**item.fields, "who": who, "things": things}, item.answer, item.grader)


def _subtraction(random: Random) -> Item:
    b, a = sorted((random.randint(10, 99), random.randint(10, 99)))
    return Item(f"{a} {b}", {"a": str(a), "b": str(b)}, str(a - b), Number(str(a - b)))


def _ordering(random: Random) -> Item:
    numbers = random.sample(range(1, 100), 3)
    while numbers == sorted(numbers):  # to repeat the question would be right
        random.shuffle(numbers)
    ordered = [str(number) for number in sorted(numbers)]
    given = {"list": ", ".join(map(str, numbers))}
    return Item(" ".join(ordered), given, " ".join(ordered), Series(tuple(ordered)))


def _largest(random: Random, count: int = 4) -> Item:
    numbers = random.sample(range(1, 100), count)
    largest = str(max(numbers))
    key = " ".join(map(str, sorted(numbers)))
    return Item(key, {"list": ", ".join(map(str, numbers))}, largest, Number(largest))


# --- letters --------------------------------------------------------------------------------------

_VOWELS, _CONSONANTS = "aeiou", "bcdfghjklmnprstvw"


def _word(random: Random) -> str:
    """A made-up word of 4 to 6 letters that can be said."""
    start = random.randrange(2)
    length = random.randint(4, 6)
    return "".join(
        random.choice(_VOWELS if (at + start) % 2 else _CONSONANTS) for at in range(length)
    )


def _reversal(random: Random) -> Item:
    word = _word(random)
    back = word[::-1]
    return Item(word, {"word": " ".join(word)}, " ".join(back), Series(tuple(back)))


def _mirror(random: Random) -> Item:
    number = str(random.randint(100, 99_999))
    back = number[::-1]
    return Item(number, {"number": number}, " ".join(back), Series(tuple(back)))


# --- relations ------------------------------------------------------------------------------------

_NAMES = (
    "Ann Bob Cara Dan Eve Finn Gail Hugo Iris Jack Kate Leo Mia Ned Olga Paul Rosa Sam Tina Vera"
).split()
_THINGS = "apples books cards coins eggs nuts pens plates shells stamps stones tickets".split()
_RELATIONS = (
    ("taller", "tallest", "shortest"),
    ("older", "oldest", "youngest"),
    ("faster", "fastest", "slowest"),
    ("richer", "richest", "poorest"),
)


def _relations(random: Random) -> Item:
    top, middle, bottom = random.sample(_NAMES, 3)
    more, most, least = random.choice(_RELATIONS)
    facts = [f"{top} is {more} than {middle}", f"{middle} is {more} than {bottom}"]
    random.shuffle(facts)
    wanted, answer = random.choice(((most, top), (least, bottom)))
    others = tuple(name for name in (top, middle, bottom) if name != answer)
    given = {"one": facts[0], "two": facts[1], "wanted": wanted}
    key = f"{top} {middle} {bottom} {wanted}"
    return Item(key, given, answer, Mention((answer,), wrong=others))


# --- facts and language ---------------------------------------------------------------------------

_COUNTRIES = """
Afghanistan|Kabul|Asia
Albania|Tirana|Europe
Algeria|Algiers|Africa
Andorra|Andorra la Vella|Europe
Angola|Luanda|Africa
Argentina|Buenos Aires|South America|Spanish
Armenia|Yerevan|Asia
Australia|Canberra|Oceania|English
Austria|Vienna|Europe|German
Azerbaijan|Baku|Asia,Europe
Bahrain|Manama|Asia
Bangladesh|Dhaka|Asia
Barbados|Bridgetown|North America,Caribbean
Belarus|Minsk|Europe
Belgium|Brussels|Europe|Dutch,French
Belize|Belmopan|Central America,North America
Benin|Porto-Novo|Africa
Bhutan|Thimphu|Asia
Bolivia|La Paz,Sucre|South America
Botswana|Gaborone|Africa
Brazil|Brasilia,Brasília|South America|Portuguese
Brunei|Bandar Seri Begawan|Asia
Bulgaria|Sofia|Europe|Bulgarian
Burkina Faso|Ouagadougou|Africa
Burundi|Gitega,Bujumbura|Africa
Cambodia|Phnom Penh|Asia
Cameroon|Yaounde,Yaoundé|Africa
Canada|Ottawa|North America|English,French
Chad|N'Djamena|Africa
Chile|Santiago|South America|Spanish
China|Beijing|Asia|Chinese,Mandarin
Colombia|Bogota,Bogotá|South America|Spanish
Costa Rica|San Jose,San José|Central America,North America
Croatia|Zagreb|Europe|Croatian
Cuba|Havana|North America,Caribbean|Spanish
Cyprus|Nicosia|Europe,Asia
Denmark|Copenhagen|Europe|Danish
Djibouti|Djibouti City|Africa
Dominica|Roseau|North America,Caribbean
Ecuador|Quito|South America
Egypt|Cairo|Africa|Arabic
El Salvador|San Salvador|Central America,North America
Eritrea|Asmara|Africa
Estonia|Tallinn|Europe
Ethiopia|Addis Ababa|Africa|Amharic
Fiji|Suva|Oceania
Finland|Helsinki|Europe|Finnish
France|Paris|Europe|French
Gabon|Libreville|Africa
Gambia|Banjul|Africa
Georgia|Tbilisi|Asia,Europe
Germany|Berlin|Europe|German
Ghana|Accra|Africa
Greece|Athens|Europe|Greek
Grenada|Saint George's,St. George's|North America,Caribbean
Guatemala|Guatemala City|Central America,North America
Guinea|Conakry|Africa
Guyana|Georgetown|South America
Haiti|Port-au-Prince|North America,Caribbean
Honduras|Tegucigalpa|Central America,North America
Hungary|Budapest|Europe|Hungarian
Iceland|Reykjavik,Reykjavík|Europe|Icelandic
India|New Delhi,Delhi|Asia|Hindi,English
Indonesia|Jakarta|Asia|Indonesian
Iran|Tehran|Asia|Persian,Farsi
Iraq|Baghdad|Asia|Arabic
Ireland|Dublin|Europe|Irish,English
Israel|Jerusalem|Asia|Hebrew
Italy|Rome|Europe|Italian
Jamaica|Kingston|North America,Caribbean
Japan|Tokyo|Asia|Japanese
Jordan|Amman|Asia
Kazakhstan|Astana|Asia
Kenya|Nairobi|Africa|Swahili,English
Kosovo|Pristina|Europe
Kuwait|Kuwait City|Asia
Kyrgyzstan|Bishkek|Asia
Laos|Vientiane|Asia
Latvia|Riga|Europe
Lebanon|Beirut|Asia|Arabic
Lesotho|Maseru|Africa
Liberia|Monrovia|Africa
Libya|Tripoli|Africa
Liechtenstein|Vaduz|Europe
Lithuania|Vilnius|Europe
Luxembourg|Luxembourg City|Europe
Madagascar|Antananarivo|Africa
Malawi|Lilongwe|Africa
Malaysia|Kuala Lumpur|Asia
Maldives|Male,Malé|Asia
Mali|Bamako|Africa
Malta|Valletta|Europe
Mauritania|Nouakchott|Africa
Mauritius|Port Louis|Africa
Mexico|Mexico City|North America|Spanish
Moldova|Chisinau,Chișinău|Europe
Mongolia|Ulaanbaatar,Ulan Bator|Asia
Montenegro|Podgorica|Europe
Morocco|Rabat|Africa|Arabic
Mozambique|Maputo|Africa
Myanmar|Naypyidaw,Yangon|Asia
Namibia|Windhoek|Africa
Nepal|Kathmandu|Asia|Nepali
New Zealand|Wellington|Oceania
Nicaragua|Managua|Central America,North America
Niger|Niamey|Africa
Nigeria|Abuja|Africa
North Korea|Pyongyang|Asia
North Macedonia|Skopje|Europe
Norway|Oslo|Europe|Norwegian
Oman|Muscat|Asia
Pakistan|Islamabad|Asia|Urdu,English
Panama|Panama City|Central America,North America
Paraguay|Asuncion,Asunción|South America
Peru|Lima|South America|Spanish
Philippines|Manila|Asia
Poland|Warsaw|Europe|Polish
Portugal|Lisbon|Europe|Portuguese
Qatar|Doha|Asia
Romania|Bucharest|Europe|Romanian
Russia|Moscow|Europe,Asia|Russian
Rwanda|Kigali|Africa
Samoa|Apia|Oceania
Saudi Arabia|Riyadh|Asia|Arabic
Senegal|Dakar|Africa
Serbia|Belgrade|Europe
Seychelles|Victoria|Africa
Sierra Leone|Freetown|Africa
Slovakia|Bratislava|Europe
Slovenia|Ljubljana|Europe
Somalia|Mogadishu|Africa
South Africa|Pretoria,Cape Town|Africa
South Korea|Seoul|Asia|Korean
Spain|Madrid|Europe|Spanish
Sri Lanka|Colombo|Asia
Sudan|Khartoum|Africa
Suriname|Paramaribo|South America
Sweden|Stockholm|Europe|Swedish
Switzerland|Bern|Europe
Syria|Damascus|Asia|Arabic
Taiwan|Taipei|Asia
Tajikistan|Dushanbe|Asia
Tanzania|Dodoma,Dar es Salaam|Africa
Thailand|Bangkok|Asia|Thai
Togo|Lome,Lomé|Africa
Tonga|Nuku'alofa|Oceania
Tunisia|Tunis|Africa
Turkey|Ankara|Asia,Europe|Turkish
Turkmenistan|Ashgabat|Asia
Uganda|Kampala|Africa
Ukraine|Kyiv,Kiev|Europe|Ukrainian
Uruguay|Montevideo|South America
Uzbekistan|Tashkent|Asia
Vanuatu|Port Vila|Oceania
Venezuela|Caracas|South America
Vietnam|Hanoi|Asia|Vietnamese
Yemen|Sanaa,Sana'a|Asia
Zambia|Lusaka|Africa
Zimbabwe|Harare|Africa
""".split("\n")[1:-1]
"""Country, capital, continent and, of some, the languages most spoken; any of several is right."""
_ELEMENTS = dict(
    pair.split("=")
    for pair in (
        "hydrogen=H helium=He lithium=Li carbon=C nitrogen=N oxygen=O fluorine=F neon=Ne sodium=Na "
        "magnesium=Mg aluminium=Al silicon=Si phosphorus=P sulfur=S chlorine=Cl potassium=K "
        "calcium=Ca iron=Fe nickel=Ni copper=Cu zinc=Zn silver=Ag tin=Sn iodine=I gold=Au "
        "mercury=Hg lead=Pb uranium=U"
    ).split()
)
_NOUNS = (
    "river garden mountain window bread teacher winter music coffee bicycle forest kitchen letter "
    "market ocean doctor train bridge candle flower island painter summer village apple blanket "
    "camera dragon engine farmer guitar hammer jacket lantern mirror needle orange pencil queen "
    "rabbit school ticket umbrella violin wagon castle desert feather helmet ladder monkey pocket "
    "sailor temple turtle valley"
).split()
_ROWS = [tuple(tuple(cell.split(",")) for cell in row.split("|")) for row in _COUNTRIES]
_CAPITALS = {row[0][0]: row[1] for row in _ROWS}
_CONTINENTS = {row[0][0]: row[2] for row in _ROWS}
_LANGUAGES = {row[0][0]: row[3] for row in _ROWS if len(row) == 4}


def _fact(table: Mapping[str, tuple[str, ...]], *, cased: bool = False) -> Callable[[Random], Item]:
    """Draw from a table; every other value of it is a wrong answer."""
    names = sorted(table)
    values = tuple(sorted({value for answers in table.values() for value in answers}))

    def draw(random: Random) -> Item:
        name = random.choice(names)
        answers = table[name]
        wrong = tuple(value for value in values if value not in answers)
        return Item(name, {"name": name}, answers[0], Mention(answers, wrong, cased))

    return draw


_capital, _continent = _fact(_CAPITALS), _fact(_CONTINENTS)


def _geography(random: Random) -> Item:
    what, draw = random.choice((("capital", _capital), ("continent", _continent)))
    item = draw(random)
    return replace(item, key=f"{what} {item.key}", fields={**item.fields, "what": what})


def _sentence(random: Random) -> Item:
    one, two = random.sample(_NOUNS, 2)
    given = {"one": one, "two": two}
    shown = f"I saw a {one} and a {two} on my way home today."
    return Item(" ".join(sorted((one, two))), given, shown, Sentence((one, two)))


# --- votes ----------------------------------------------------------------------------------------


def _said(random: Random) -> tuple[str, str]:
    """Two different answers to one question, as players write them."""
    kind = random.randrange(4)
    if kind == 0:
        one = random.randint(20, 198)
        return str(one), str(one + random.choice((-20, -11, -10, -1, 1, 10, 11, 20)))
    if kind == 1:
        names = random.sample(_NAMES, 2)
        return names[0], names[1]
    if kind == 2:
        numbers = [str(number) for number in random.sample(range(1, 100), 3)]
    else:
        numbers = list(_word(random))
    other = list(numbers)
    at = random.randrange(len(other) - 1)
    other[at], other[at + 1] = other[at + 1], other[at]
    if other == numbers:
        other[at] = "x"
    return " ".join(numbers), " ".join(other)


def _tally(random: Random) -> Item:
    most, other = _said(random)
    answers = [most, most, other if random.random() < 0.8 else most]
    random.shuffle(answers)
    given = {"one": answers[0], "two": answers[1], "three": answers[2]}
    return Item(" | ".join(sorted(answers)), given, most, Exact((most,)))


FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family(
            "addition",
            _addition,
            (
                "What is {a} + {b}?",
                "{a} + {b} =",
                "Add {a} and {b}.",
                "Work out the sum of {a} and {b}.",
                "How much is {a} plus {b}?",
            ),
            ("Compute {a} + {b}.", "What do {a} and {b} make together?"),
        ),
        Family(
            "stories",
            _story,
            (
                "{who} has {a} {things} and gets {b} more. How many are that?",
                "There are {a} {things} here and {b} there. How many in all?",
                "{who} buys {a} {things} and then {b} more. How many {things} has {who} now?",
            ),
            (
                "{who} picks {a} {things}, then another {b}. What is the total?",
                "In one box are {a} {things}, in the other {b}. Count them all.",
            ),
            reserved=True,
            dealt_as="addition",
        ),
        Family(
            "subtraction",
            _subtraction,
            (
                "What is {a} - {b}?",
                "{a} - {b} =",
                "Subtract {b} from {a}.",
                "How much is {a} minus {b}?",
            ),
            ("Take {b} away from {a}.", "What is the difference between {a} and {b}?"),
            reserved=True,
        ),
        Family(
            "ordering",
            _ordering,
            (
                "Sort these numbers: {list}",
                "Put in ascending order: {list}",
                "Order the numbers {list} from small to large.",
                "Arrange {list} with the smallest first.",
            ),
            ("Write {list} in increasing order.", "List these from lowest to highest: {list}"),
        ),
        Family(
            "largest",
            _largest,
            (
                "Which number is the largest: {list}?",
                "Find the maximum of {list}.",
                "What is the biggest of the numbers {list}?",
            ),
            ("Pick the greatest number from {list}.",),
            reserved=True,
        ),
        Family(
            "reversal",
            _reversal,
            (
                "Spell backward: {word}",
                "Reverse the letters {word}.",
                "Write {word} in reverse.",
                "Read {word} from the last letter to the first.",
            ),
            ("What is {word} spelled backwards?", "Turn round the order of these letters: {word}"),
        ),
        Family(
            "mirror",
            _mirror,
            (
                "Write the digits of {number} backward.",
                "Reverse the digits of {number}.",
                "Read the number {number} from right to left.",
            ),
            ("What are the digits of {number} in reverse order?",),
            reserved=True,
        ),
        Family(
            "relations",
            _relations,
            (
                "{one}. {two}. Who is {wanted}?",
                "{one} and {two}. Who is the {wanted}?",
                "If {one} and {two}, who is {wanted}?",
                "Name the {wanted} one: {one}; {two}.",
            ),
            ("Who is {wanted}, given that {one} and {two}?", "{one}, and {two}. The {wanted} is?"),
        ),
        Family(
            "geography",
            _geography,
            (
                "What is the {what} of {name}?",
                "Name the {what} of {name}.",
                "Which {what} does {name} have?",
                "{name}: what is its {what}?",
            ),
            ("Tell me the {what} of {name}.", "What is {name}'s {what}?"),
            shares=FEW,
        ),
        Family(
            "languages",
            _fact(_LANGUAGES),
            (
                "What language is spoken in {name}?",
                "Which language do people in {name} speak?",
                "Name the main language of {name}.",
            ),
            ("In {name}, what language do people speak?",),
            reserved=True,
        ),
        Family(
            "symbols",
            _fact({name: (symbol,) for name, symbol in _ELEMENTS.items()}, cased=True),
            (
                "What is the chemical symbol for {name}?",
                "Which symbol stands for the element {name}?",
            ),
            ("Give the chemical symbol of {name}.", "{name}: what is its chemical symbol?"),
            reserved=True,
        ),
        Family(
            "tally",
            _tally,
            (
                "Three answers: {one}; {two}; {three}. Which one is given most often?",
                "Which answer do most give? Ann: {one}. Bob: {two}. Cara: {three}.",
                "Of the answers {one}, {two} and {three}, name the most frequent.",
            ),
            (
                "They say: {one}; {two}; {three}. What does the majority say?",
                "Pick the answer that occurs most often among {one}; {two}; {three}.",
            ),
        ),
        Family(
            "sentences",
            _sentence,
            (
                "Write a sentence with the words {one} and {two}.",
                "Use the words {one} and {two} in a sentence.",
                "Make up a short story about a {one} and a {two}.",
                "Tell me something about a {one} and a {two}.",
            ),
            (
                "Write one sentence in which both {one} and {two} occur.",
                "Say something with {one} and {two} in it.",
            ),
        ),
    )
}


# --- chains ---------------------------------------------------------------------------------------


def _plus(number: str, other: int) -> Item:
    """Add another number to one that was found before."""
    low, high = sorted((int(number), other))
    total = str(low + high)
    alone = {"a": number}
    return Item(f"{low} {high}", {"b": str(other)}, total, Number(total), alone)


def _backward(number: str) -> Item:
    back = number[::-1]
    return Item(number, {}, " ".join(back), Series(tuple(back)), {"number": number})


def _largest_then_addition(random: Random) -> tuple[Item, ...]:
    first = _largest(random, 3)  # a fourth number misleads whoever adds
    return first, _plus(first.answer, random.randint(10, 99))


def _addition_then_ordering(random: Random) -> tuple[Item, ...]:
    first = _addition(random, most=49)
    total = int(first.answer)
    others = random.sample([number for number in range(1, 100) if number != total], 2)
    ordered = [str(number) for number in sorted([total, *others])]
    answer = " ".join(ordered)
    given, alone = _listed(others), _listed([total, *others])
    return first, Item(answer, given, answer, Series(tuple(ordered)), alone)


def _listed(numbers: Iterable[int]) -> Mapping[str, str]:
    return {"list": ", ".join(map(str, numbers))}


def _then_mirror(
    draw: Callable[[Random], tuple[Item, ...]],
) -> Callable[[Random], tuple[Item, ...]]:
    """Write the number found last backward, unless an earlier part gives the same digits."""

    def longer(random: Random) -> tuple[Item, ...]:
        while True:
            items = draw(random)
            last = _backward(items[-1].answer)
            if all(item.answer != last.key[::-1] for item in items):
                return *items, last

    return longer


def _addition_then_largest(random: Random) -> tuple[Item, ...]:
    first = _addition(random, most=49)
    total = int(first.answer)
    others = random.sample([number for number in range(10, 100) if number != total], 2)
    largest = str(max(total, *others))
    key = " ".join(map(str, sorted([total, *others])))
    given, alone = _listed(others), _listed([total, *others])
    return first, Item(key, given, largest, Number(largest), alone)


def _tally_then_addition(random: Random) -> tuple[Item, ...]:
    while True:
        first = _tally(random)
        if first.answer.isdigit() and len(first.answer) == 2:
            return first, _plus(first.answer, random.randint(10, 99))


def _relations_then_sentence(random: Random) -> tuple[Item, ...]:
    first = _relations(random)
    word = random.choice(_NOUNS)
    others = first.grader.wrong if isinstance(first.grader, Mention) else ()
    shown = f"{first.answer} saw a {word} on the way home today."
    grader = Sentence((first.answer, word), wrong=others)
    key, alone = " ".join(sorted((first.answer, word))), {"one": first.answer, "two": word}
    return first, Item(key, {"word": word}, shown, grader, alone)


VERDICTS = (
    "Give the answer that most of them agree on.",
    "Which answer do most replies give?",
)
"""How a plan asks its last step to count votes."""

_FIND_LARGEST = (
    "Which number is the largest: {list}?",
    "Find the maximum of {list}.",
    "What is the biggest of the numbers {list}?",
    "Name the largest of the numbers {list}.",
)
_ADD = ("What is {a} + {b}?", "Add {a} and {b}.", "How much is {a} plus {b}?", "{a} + {b} =")
_ADD_TO_IT = (
    "Add {b} to that number.",
    "How much is that number plus {b}?",
    "What is that number + {b}?",
    "Work out the sum of that number and {b}.",
)
_TURN_IT_ROUND = (
    "Write the digits of that number backward.",
    "Reverse the digits of that number.",
    "Read that number from right to left.",
    "Write that number in reverse.",
)


CHAINS: Mapping[str, Chain] = {
    chain.name: chain
    for chain in (
        Chain(
            "largest-addition",
            _largest_then_addition,
            (
                "What do you get if you add {b} to the maximum of {list}?",
                "How much is {b} plus the biggest of {list}?",
                "What is {b} plus the largest of {list}?",
                "If {b} is added to the biggest of the numbers {list}, how much is it?",
                "Work out the sum of {b} and the maximum of {list}.",
                "Add {b} to whichever of {list} is the largest. How much is that?",
            ),
            (
                "What do {b} and the greatest of {list} make together?",
                "Tell me what you get when {b} is added to the highest of {list}.",
                "Compute {b} plus the greatest number from {list}.",
            ),
            ("largest", "addition"),
            (_FIND_LARGEST, _ADD_TO_IT),
        ),
        Chain(
            "addition-ordering",
            _addition_then_ordering,
            (
                "Sort the sum of {a} and {b} together with {list}.",
                "Put {a} + {b} and the numbers {list} in ascending order.",
                "Add {a} and {b}, then sort the result and {list}.",
                "What is the order from small to large of {list} and the sum of {a} and {b}?",
                "Work out {a} plus {b} and arrange it with {list}, the smallest first.",
                "Order the numbers {list} and {a} + {b} from small to large.",
            ),
            (
                "Order these from small to large: {list}, and the total of {a} and {b}.",
                "List from lowest to highest what {a} and {b} make together, and {list}.",
                "How do {list} and {a} plus {b} stand in increasing order?",
            ),
            ("addition", "ordering"),
            (
                _ADD,
                (
                    "Sort that number and {list}.",
                    "Put that number and {list} in ascending order.",
                    "Order that number and {list} from small to large.",
                    "Arrange that number and {list} with the smallest first.",
                ),
            ),
        ),
        Chain(
            "addition-mirror",
            _then_mirror(lambda random: (_addition(random),)),
            (
                "Write the digits of {a} + {b} backward.",
                "Add {a} and {b}, then reverse the digits of the sum.",
                "How much is {a} plus {b}? Write the digits of the result in reverse.",
                "Reverse the digits of the sum of {a} and {b}.",
                "Work out {a} + {b} and read it from the last digit to the first.",
                "What do you get if you add {a} to {b} and write the result backward?",
            ),
            (
                "What is the sum of {a} and {b}, read from right to left?",
                "Compute {a} + {b}; give the digits of that in reverse order.",
                "Turn round the digits of what {a} and {b} make together.",
            ),
            ("addition", "mirror"),
            (_ADD, _TURN_IT_ROUND),
        ),
        Chain(
            "largest-mirror",
            _then_mirror(lambda random: (_largest(random),)),
            (
                "Write the digits of the largest of these numbers backward: {list}",
                "Find the maximum of {list}, then reverse its digits.",
                "Which of {list} is the largest? Write it in reverse.",
                "Reverse the digits of the biggest of {list}.",
                "Of the numbers {list}, read the largest from right to left.",
                "What do you get if you write the maximum of {list} backward?",
            ),
            (
                "Pick the greatest number from {list} and turn its digits round.",
                "{list}: what are the digits of the highest of these in reverse order?",
                "Take the biggest of {list}, and read it from the last digit to the first.",
            ),
            ("largest", "mirror"),
            (_FIND_LARGEST, _TURN_IT_ROUND),
        ),
        Chain(
            "tally-addition",
            _tally_then_addition,
            (
                "Add {b} to the most frequent of the answers {one}, {two} and {three}.",
                "How much is {b} plus what most of them answer? Ann: {one}. Bob: {two}. "
                "Cara: {three}.",
                "What is {b} plus the answer that most give: {one}, {two} or {three}?",
                "Work out the sum of {b} and the most frequent of {one}, {two} and {three}.",
                "What do you get if you add {b} to the answer given most often: {one}; {two}; "
                "{three}?",
                "If {b} is added to the most frequent of {one}, {two} and {three}, how much is it?",
            ),
            (
                "What do {b} and the answer that occurs most often among {one}; {two}; {three} "
                "make together?",
                "Compute {b} plus what the majority says: {one}; {two}; {three}.",
                "Tell me what you get when {b} is added to the most common of {one}, {two} and "
                "{three}.",
            ),
            ("tally", "addition"),
            (
                (
                    "Three answers: {one}; {two}; {three}. Which one is given most often?",
                    "Which answer do most give? Ann: {one}. Bob: {two}. Cara: {three}.",
                    "Of the answers {one}, {two} and {three}, name the most frequent.",
                    "Which one is given most often: {one}; {two}; {three}?",
                ),
                _ADD_TO_IT,
            ),
        ),
        Chain(
            "relations-sentences",
            _relations_then_sentence,
            (
                "{one}. {two}. Write a sentence about the {wanted} one and a {word}.",
                "If {one} and {two}, use the {wanted} name and the word {word} in a sentence.",
                "{one} and {two}. Tell me something about whoever is {wanted} and a {word}.",
                "Who is {wanted} if {one} and {two}? Make up a short story about that one and a "
                "{word}.",
                "Make up a sentence with the word {word} and the {wanted} one's name: {one}; "
                "{two}.",
                "Write about a {word} and the {wanted} person. {one}. {two}.",
            ),
            (
                "{one}, and {two}. Say something about a {word} and whoever is {wanted}.",
                "Given that {one} and {two}, write one sentence in which the {wanted} one and "
                "{word} occur.",
                "Say something with {word} in it about the {wanted} one: {one}, and {two}.",
            ),
            ("relations", "sentences"),
            (
                (
                    "{one}. {two}. Who is {wanted}?",
                    "If {one} and {two}, who is {wanted}?",
                    "{one} and {two}. Who is the {wanted}?",
                    "Name the {wanted} one: {one}; {two}.",
                ),
                (
                    "Write a sentence about that person and a {word}.",
                    "Use that name and the word {word} in a sentence.",
                    "Make up a short story about that person and a {word}.",
                    "Tell me something about that person and a {word}.",
                ),
            ),
            reserved=True,
        ),
        Chain(
            "stories-mirror",
            _then_mirror(lambda random: (_story(random),)),
            (
                "{who} has {a} {things} and gets {b} more. Write the digits of the total backward.",
                "There are {a} {things} here and {b} there. How many in all? Reverse the digits.",
                "{who} buys {a} {things} and then {b} more. Read their number from right to left.",
                "How many {things} has {who}, who had {a} and got {b}? Write that in reverse.",
                "Write in reverse how many {things} there are: {a} here and {b} there.",
                "If {who} has {a} {things} and buys {b} more, what are the digits of the total "
                "backward?",
            ),
            (
                "{who} picks {a} {things}, then another {b}. Turn round the digits of the total.",
                "In one box are {a} {things}, in the other {b}. Count them, and give the digits in "
                "reverse order.",
                "Read from the last digit to the first how many {things} {who} has: {a} and {b}.",
            ),
            ("stories", "mirror"),
            (
                (
                    "{who} has {a} {things} and gets {b} more. How many are that?",
                    "There are {a} {things} here and {b} there. How many in all?",
                    "{who} buys {a} {things} and then {b} more. How many {things} has {who} now?",
                    "What is {a} + {b}?",
                ),
                _TURN_IT_ROUND,
            ),
            reserved=True,
        ),
        Chain(
            "addition-largest-mirror",
            _then_mirror(_addition_then_largest),
            (
                "Write the largest of {a} + {b}, {list} backward.",
                "Add {a} and {b}; write the maximum of that and {list} in reverse.",
                "Which is the largest, {a} plus {b} or one of {list}? Reverse its digits.",
                "Reverse the digits of the biggest of {list} and the sum of {a} and {b}.",
                "Work out {a} + {b}, and read the largest of it and {list} from right to left.",
                "What do you get if you write the maximum of {a} + {b} and {list} backward?",
            ),
            (
                "Turn round the digits of the greatest of {a} + {b}, {list}.",
                "What is the highest of {list} and the total of {a} and {b}, in reverse order of "
                "digits?",
                "Compute {a} + {b}; give the digits of the greatest of that and {list} from the "
                "last to the first.",
            ),
            ("addition", "largest", "mirror"),
            (
                _ADD,
                (
                    "Which number is the largest: that number, {list}?",
                    "Find the maximum of that number and {list}.",
                    "What is the biggest of that number and {list}?",
                    "Name the largest of that number and {list}.",
                ),
                _TURN_IT_ROUND,
            ),
            reserved=True,
        ),
    )
}
