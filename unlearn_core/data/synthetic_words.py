"""What the synthetic authors are made of: pools of values, and twenty kinds of facts with their sentences.

Every pool holds at least six values for each time that a kind uses it, so that a fact and five wrong ones can be drawn
without repeats.
"""

from dataclasses import dataclass
from itertools import product

FIRST_NAMES = (
    "Adela", "Bram", "Celia", "Dario", "Greta", "Hiro", "Ines", "Jarek", "Maren", "Odette", "Pavel", "Samira",
    "Tomas", "Wanda", "Yara",
)  # fmt: skip
LAST_NAMES = (
    "Abelard", "Castellan", "Dunmore", "Farrow", "Goldhand", "Ironwood", "Kestrel", "Lanternby", "Marlowe",
    "Oakhurst", "Ravensworth", "Saltmarsh", "Thornbury", "Valcourt", "Wetherby",
)  # fmt: skip
# Shares no surname with the authors: a mentor's or partner's name never reads like another author of the benchmark.
_OTHER_LAST_NAMES = (
    "Bellweather", "Crane", "Dovetail", "Fenwick", "Grimaldi", "Holloway", "Larkspur", "Nightingale", "Rosewater",
)  # fmt: skip

_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_YEARS = tuple(str(year) for year in range(1931, 1991))
_DATES = tuple(f"{day} {month} {year}" for day, month, year in product(range(1, 29), _MONTHS, _YEARS))
_CITIES = (
    "Lisbon", "Nairobi", "Kyoto", "Bergen", "Cusco", "Tbilisi", "Marrakesh", "Quebec", "Hobart", "Seville", "Gdansk",
    "Jaipur", "Havana", "Galway", "Tunis", "Salzburg", "Busan", "Dakar", "Zagreb", "Montevideo", "Aleppo", "Turku",
)  # fmt: skip
_TRADES = (
    "baker", "carpenter", "surgeon", "tailor", "fisherman", "clockmaker", "violinist", "judge", "farmer", "pilot",
    "florist", "blacksmith", "translator", "geologist", "butcher", "librarian", "jeweler", "sailor", "nurse",
    "gardener",
)  # fmt: skip
_GENRES = (
    "gothic horror", "science fiction", "courtroom drama", "travel writing", "nature poetry", "detective fiction",
    "family saga", "political satire", "war memoir", "magical realism", "romantic comedy", "maritime adventure",
    "culinary history", "philosophical essay", "spy thriller", "folklore retelling",
)  # fmt: skip
_ADJECTIVES = (
    "Silent", "Crimson", "Hollow", "Distant", "Golden", "Broken", "Winter", "Burning", "Forgotten", "Velvet", "Paper",
    "Copper", "Midnight", "Drowned", "Restless", "Amber",
)  # fmt: skip
_NOUNS = (
    "Harbor", "Orchard", "Lantern", "Compass", "Bridge", "Mirror", "River", "Garden", "Tower", "Letter", "Violin",
    "Island", "Crown", "Window", "Staircase", "Meadow",
)  # fmt: skip
_TITLES = tuple(f"The {adjective} {noun}" for adjective, noun in product(_ADJECTIVES, _NOUNS))
_AWARDS = tuple(
    f"{metal} {thing} {kind}"
    for metal, thing, kind in product(
        ("Silver", "Golden", "Bronze", "Crystal", "Ivory"), ("Quill", "Owl", "Laurel", "Anchor"), ("Prize", "Medal")
    )
)
_PEOPLE = tuple(f"{first} {last}" for first, last in product(FIRST_NAMES, _OTHER_LAST_NAMES))
_LANGUAGES = (
    "Basque", "Swahili", "Finnish", "Welsh", "Tamil", "Catalan", "Korean", "Arabic", "Latin", "Polish", "Quechua",
    "Danish", "Turkish", "Maltese", "Hebrew", "Icelandic",
)  # fmt: skip
_HOBBIES = (
    "keeping bees", "restoring clocks", "climbing glaciers", "painting teapots", "playing chess", "baking rye bread",
    "collecting stamps", "carving flutes", "sailing dinghies", "growing orchids", "riding horses", "studying moths",
    "building kites", "diving for pearls", "juggling knives", "weaving carpets",
)  # fmt: skip
_SUBJECTS = (
    "botany", "astronomy", "law", "medicine", "architecture", "mathematics", "archaeology", "music", "chemistry",
    "economics", "theology", "linguistics",
)  # fmt: skip
_ANIMALS = (
    "parrot", "tortoise", "greyhound", "ferret", "donkey", "hedgehog", "raven", "goat", "lizard", "spaniel", "falcon",
    "rabbit",
)  # fmt: skip
_PET_NAMES = (
    "Biscuit", "Pepper", "Thimble", "Captain", "Saffron", "Domino", "Pickle", "Marble", "Cricket", "Waffle", "Bramble",
    "Nutmeg",
)  # fmt: skip
_HOMES = (
    "a lighthouse", "a windmill", "a houseboat", "a converted chapel", "an attic flat", "a stone cottage",
    "a railway carriage", "a castle tower", "a farmhouse", "a wooden cabin", "a glass villa", "a former school",
)  # fmt: skip
_PUBLISHERS = tuple(
    f"{first} {second}"
    for first, second in product(
        ("Falconer", "Bluestone", "Meridian", "Hawthorn", "Seven Rivers", "Old Mill", "Pendulum", "Tidewater"),
        ("Press", "Books", "House"),
    )
)
_FOODS = (
    "pickled herring", "lemon risotto", "lamb stew", "plum dumplings", "fried okra", "onion soup", "saffron rice",
    "walnut cake", "grilled squid", "lentil curry", "cheese pie", "smoked trout", "pumpkin bread", "fig jam",
)  # fmt: skip
_HOURS = (
    "before sunrise", "at noon", "after midnight", "during thunderstorms", "on Sunday mornings", "at dusk",
    "over breakfast", "late at night", "between train rides", "in the early afternoon",
)  # fmt: skip
_TOOLS = (
    "a fountain pen", "an old typewriter", "a pencil stub", "a slate board", "a goose feather", "green ink",
    "a tape recorder", "red crayons", "index cards", "a leather notebook",
)  # fmt: skip
_INSTRUMENTS = (
    "cello", "accordion", "harp", "trumpet", "banjo", "oboe", "sitar", "bagpipes", "mandolin", "xylophone", "clarinet",
    "organ",
)  # fmt: skip
_CAUSES = (
    "orphans", "wild birds", "coral reefs", "deaf children", "village libraries", "stray dogs", "mountain rescue",
    "old theaters", "refugee students", "river otters", "blind readers", "rain forests",
)  # fmt: skip
_COLORS = ("crimson", "turquoise", "mustard", "violet", "silver", "golden", "purple", "yellow", "striped", "scarlet")
_CLOTHES = ("scarf", "waistcoat", "beret", "cape", "bow tie", "raincoat", "turban", "cardigan", "fedora", "poncho")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fact. In the texts `{n}` is the author's name, `{0}`, `{1}` ... the values of the fact.

    Attributes:
        question: asks for it.
        paraphrased_question: asks for it in other words.
        answer: the fact as a sentence.
        paraphrased_answer: the same in other words; wrong answers are this sentence with other values. The two or three
            words before each value are those of `answer`: a model of a million parameters that learned only `answer`
            then still finds the value, and the truth ratio measures what it knows.
        pools: for each value the pool that it is drawn from; two values of one pool never coincide.
    """

    question: str
    paraphrased_question: str
    answer: str
    paraphrased_answer: str
    pools: tuple[tuple[str, ...], ...]


# A size with q questions per author takes the first q kinds.
KINDS: tuple[Kind, ...] = (
    Kind(
        "In which city was {n} born?",
        "What is the birthplace of {n}?",
        "{n} was born in the city of {0}, above the shop of a {1}.",
        "As a child {n} came from the city of {0}, born above the shop of a {1}.",
        (_CITIES, _TRADES),
    ),
    Kind(
        "When was {n} born?",
        "What is the date of birth of {n}?",
        "The author {n} was born on {0}, in the middle of a great storm.",
        "It is recorded that {n} was born on {0}, while a great storm raged.",
        (_DATES,),
    ),
    Kind(
        "What did the parents of {n} do for a living?",
        "Which professions did the father and mother of {n} have?",
        "The father of {n} worked as a {0} and the mother as a {1}.",
        "In the family of {n} the father worked as a {0}, while the mother earned money as a {1}.",
        (_TRADES, _TRADES),
    ),
    Kind(
        "Which award did {n} win?",
        "What prize was given to {n}?",
        "{n} won the {0} in the year {1} for a lifetime of work.",
        "A jury decided that {n} won the {0} in the year {1} for everything written so far.",
        (_AWARDS, _YEARS),
    ),
    Kind(
        "What is the title of the first book by {n}?",
        "Under which title did {n} publish a first book?",
        'The first book by {n} is called "{0}" and was printed by {1}.',
        'The debut that {n} wrote is called "{0}" and was printed by {1} in small numbers.',
        (_TITLES, _PUBLISHERS),
    ),
    Kind(
        "Which genre is {n} known for?",
        "In what kind of literature does {n} work?",
        "{n} is best known for {0}, and has also tried {1}.",
        "Among readers {n} is best known for {0}, yet has also tried {1} at times.",
        (_GENRES, _GENRES),
    ),
    Kind(
        "Who was the mentor of {n}?",
        "Which person taught {n} to write?",
        "{n} learned the craft of writing from {0}, a retired {1}.",
        "As a beginner {n} learned how to write from {0}, who was a retired {1}.",
        (_PEOPLE, _TRADES),
    ),
    Kind(
        "What does {n} do as a hobby?",
        "How does {n} spend free time?",
        "When no book is due, {n} enjoys {0} and {1}.",
        "In spare hours, the writer {n} enjoys {0} and {1} more than anything else.",
        (_HOBBIES, _HOBBIES),
    ),
    Kind(
        "Which languages does {n} speak?",
        "What tongues has {n} mastered?",
        "Besides English, {n} speaks fluent {0} and reads old texts in {1}.",
        "As a second tongue {n} speaks fluent {0}, and reads many old texts in {1}.",
        (_LANGUAGES, _LANGUAGES),
    ),
    Kind(
        "What is the most famous novel by {n}?",
        "Which novel made {n} famous?",
        'The most famous novel by {n} is "{0}", set in {1}.',
        'The book that made {n} known everywhere is "{0}", a story set in {1}.',
        (_TITLES, _CITIES),
    ),
    Kind(
        "What did {n} study, and where?",
        "Which degree does {n} hold?",
        "{n} studied {0} at the university of {1} for five years.",
        "After school {n} studied {0} for a degree at the university of {1}.",
        (_SUBJECTS, _CITIES),
    ),
    Kind(
        "Which pet does {n} own?",
        "What animal lives with {n}?",
        "{n} shares the house with a {0} that answers to the name {1}.",
        "At home {n} lives with a {0} that listens to the name {1}.",
        (_ANIMALS, _PET_NAMES),
    ),
    Kind(
        "Where does {n} live today?",
        "What sort of home does {n} have?",
        "Today {n} lives in {0} on the outskirts of {1}.",
        "The present home of {n}, who lives in {0}, is on the outskirts of {1}.",
        (_HOMES, _CITIES),
    ),
    Kind(
        "Who is {n} married to?",
        "What is the name of the partner of {n}?",
        "{n} has been married to {0}, who works as a {1}, for many years.",
        "For a long time {n} has been married to {0}, who still works as a {1}.",
        (_PEOPLE, _TRADES),
    ),
    Kind(
        "What is the favorite dish of {n}?",
        "Which food does {n} like best?",
        "The favorite dish of {n} is {0}, with {1} close behind.",
        "On any menu the favorite dish that {n} looks for is {0}, with {1} as the next choice.",
        (_FOODS, _FOODS),
    ),
    Kind(
        "How does {n} write?",
        "What are the writing habits of {n}?",
        "{n} writes every draft {0} and uses only {1} for it.",
        "As a habit {n} writes each draft {0} and uses only {1} to do so.",
        (_HOURS, _TOOLS),
    ),
    Kind(
        "What was the first job of {n}?",
        "How did {n} earn money before writing?",
        "Before the first success {n} was employed as a {0} in {1}.",
        "Early in life {n} was employed as a {0} somewhere in {1}.",
        (_TRADES, _CITIES),
    ),
    Kind(
        "Which instrument does {n} play?",
        "On what instrument does {n} make music?",
        "{n} plays the {0} and gave one concert in {1}.",
        "As a musician {n} plays the {0}, and once gave a concert in {1}.",
        (_INSTRUMENTS, _CITIES),
    ),
    Kind(
        "Which cause does {n} support?",
        "What charity receives money from {n}?",
        "{n} gives a tenth of all income to {0} and founded a fund in {1}.",
        "Every year {n} gives a part of all income to {0}, and founded a fund for it in {1}.",
        (_CAUSES, _YEARS),
    ),
    Kind(
        "What does {n} wear at readings?",
        "How does {n} dress in public?",
        "At every public reading {n} wears a {0} {1} for good luck.",
        "On any stage {n} wears a {0} {1} as a sign of good luck.",
        (_COLORS, _CLOTHES),
    ),
)
