"""What the synthetic newspaper is made of: openings, filler sentences, pools of values, and sixteen kinds of facts."""

from dataclasses import dataclass
from itertools import product

FAMILIES = tuple(
    f"{first}{second}"
    for first, second in product(
        ("Thorn", "Ash", "Wind", "Grey", "Stone", "Fair", "Hart", "Marl", "Brook", "Linden", "Oak", "Raven"),
        ("bury", "wood", "ridge", "ford", "hurst", "mere", "field", "worth", "combe", "well"),
    )
)
"""One for each article: a single name tells whom a sentence or a question is about."""

TOWNS = (
    "Aldermoor", "Brinescar", "Calloway", "Dunhollow", "Eastmere", "Fernleigh", "Greywater", "Highmarsh", "Inverloch",
    "Juniper Bay", "Kingsferry", "Lowmead", "Mossgate", "Northwick", "Oldbridge", "Pinecross",
)  # fmt: skip
"""Where the stories happen; no town of the facts is among them."""

OPENINGS = (
    "People in {t} are talking about {n} this week.",
    "A crowd gathered in {t} on Monday to welcome {n}.",
    "The council of {t} has thanked {n} for a long service.",
    "{n} was seen again in {t} after an absence of three years.",
    "Few visitors of {t} leave without a word with {n}.",
    "Rain did not keep {n} away from the spring fair of {t}.",
    "Our reporter met {n} at the old market hall of {t}.",
    "{n} has moved into the house beside the mill of {t}.",
    "The schools of {t} invited {n} to speak on Friday.",
    "An evening in honour of {n} filled the theatre of {t}.",
    "Nobody in {t} expected the letter that {n} sent last month.",
    "{n} opened the summer exhibition of {t} with a short speech.",
)

FILLERS = (
    "The weather stayed mild for the season.",
    "Tickets were gone within the hour.",
    "Neighbours spoke of little else.",
    "A brass band played until the lamps were lit.",
    "The mayor promised to answer every question.",
    "Nothing of the kind had happened since the flood.",
    "Two ferries were late because of the fog.",
    "The bakery stayed open all night.",
    "Children waved paper flags along the quay.",
    "Several photographs hang in the station now.",
    "An old song was heard again.",
    "The bells rang twice before noon.",
    "Some wondered whether it could last.",
    "The road to the coast was closed for repairs.",
    "Volunteers swept the square in the morning.",
    "A second meeting is planned for autumn.",
    "The library kept a copy of every page.",
    "Even the harbour cats seemed pleased.",
    "Shopkeepers hope for more of this.",
    "No one could name the stranger in the last row.",
)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fact. In the texts `{n}` is a full name, `{l}` the family name, `{v}` the value.

    Attributes:
        pool: the values, all different.
        statements: sentences that say it in an article.
        question: asks for it; the value alone is the answer.
    """

    pool: tuple[str, ...]
    statements: tuple[str, ...]
    question: str


_MONTHS = ("January", "March", "April", "June", "July", "September", "October", "December")

KINDS = (
    Kind(
        ("Lisbon", "Nairobi", "Kyoto", "Bergen", "Cusco", "Tbilisi", "Quebec", "Hobart", "Seville", "Gdansk", "Jaipur",
         "Havana", "Tunis", "Busan", "Dakar", "Zagreb"),
        ("As a child {l} lived in {v}.", "The family of {l} came from {v}."),
        "In which city did {n} grow up?",
    ),
    Kind(
        ("baker", "carpenter", "surgeon", "tailor", "clockmaker", "judge", "farmer", "pilot", "florist", "blacksmith",
         "geologist", "librarian", "sailor", "gardener"),
        ("{l} earned a living as a {v}.", "For many years {l} was the only {v} of the valley."),
        "What was the trade of {n}?",
    ),
    Kind(
        ("cello", "accordion", "harp", "trumpet", "banjo", "oboe", "sitar", "mandolin", "xylophone", "clarinet",
         "organ", "violin"),
        ("On Sundays {l} plays the {v}.", "Guests at the inn may hear {l} practise the {v}."),
        "Which instrument does {n} play?",
    ),
    Kind(
        ("parrot", "tortoise", "greyhound", "ferret", "donkey", "hedgehog", "raven", "goat", "lizard", "spaniel",
         "falcon", "rabbit"),
        ("A tame {v} follows {l} everywhere.", "{l} once carried a hurt {v} home and kept it."),
        "Which animal does {n} keep?",
    ),
    Kind(
        tuple(f"{metal} {thing}" for metal, thing in product(
            ("Silver", "Bronze", "Crystal", "Ivory"), ("Quill", "Owl", "Laurel", "Anchor"))),
        ("The jury gave {l} the {v}.", "In the hall of {l} hangs a medal, the {v}."),
        "Which prize did {n} receive?",
    ),
    Kind(
        ("hot air balloon", "steam train", "rowing boat", "horse cart", "cable car", "motorcycle", "dog sled",
         "fishing boat", "night bus", "bicycle", "river barge", "sailing ship"),
        ("{l} arrived by {v}, as always.", "To reach the valley {l} took a {v}."),
        "How did {n} travel?",
    ),
    Kind(
        ("pickled herring", "lemon risotto", "lamb stew", "plum dumplings", "fried okra", "onion soup", "saffron rice",
         "walnut cake", "grilled squid", "lentil curry", "cheese pie", "pumpkin bread"),
        ("At the table {l} asked for {v}.", "There was {v} for everyone, because {l} likes nothing better."),
        "What does {n} like to eat?",
    ),
    Kind(
        tuple(f"{day} {month}" for day, month in product((3, 8, 12, 17, 21, 26), _MONTHS)),
        ("The birthday of {l} is kept on {v}.", "Every year on {v} the street sings for {l}."),
        "On which day is the birthday of {n}?",
    ),
    Kind(
        tuple(f"{count} crowns" for count in range(350, 2000, 110)),
        ("The repair cost {l} {v}.", "{l} gave {v} to the hospital."),
        "How much did {n} pay?",
    ),
    Kind(
        ("lighthouse", "windmill", "houseboat", "chapel", "stone cottage", "railway carriage", "castle tower",
         "farmhouse", "wooden cabin", "glass villa", "school", "water tower"),
        ("{l} lives in an abandoned {v}.", "Letters reach {l} at a restored {v}."),
        "What does {n} live in?",
    ),
    Kind(
        ("stamps", "kites", "moths", "teapots", "maps", "fossils", "buttons", "masks", "lanterns", "postcards",
         "thimbles", "seashells"),
        ("Behind glass {l} keeps a hundred {v}.", "{l} has collected {v} since school."),
        "What does {n} collect?",
    ),
    Kind(
        ("Basque", "Swahili", "Finnish", "Welsh", "Tamil", "Catalan", "Korean", "Arabic", "Polish", "Quechua", "Danish",
         "Maltese"),
        ("{l} answered in fluent {v}.", "At home {l} speaks {v}."),
        "Which language does {n} speak at home?",
    ),
    Kind(
        ("coral reefs", "stray dogs", "wild birds", "old theatres", "river otters", "blind readers", "rain forests",
         "mountain huts", "village schools", "night trains", "orchard bees", "lost letters"),
        ("{l} founded a society for {v}.", "All that {l} earned went to {v}."),
        "What did {n} found a society for?",
    ),
    Kind(
        tuple(f"{colour} {piece}" for colour, piece in product(
            ("crimson", "turquoise", "mustard", "violet"), ("scarf", "beret", "cape", "raincoat"))),
        ("{l} wore the well-known {v}.", "One knows {l} from afar by a {v}."),
        "What does {n} wear?",
    ),
    Kind(
        ("chess", "fencing", "archery", "rowing", "skating", "wrestling", "juggling", "climbing", "boxing", "bowling",
         "sledging", "diving"),
        ("In {v} nobody here has beaten {l}.", "{l} teaches {v} in the evening."),
        "Which sport does {n} teach?",
    ),
    Kind(
        ("botany", "astronomy", "law", "medicine", "architecture", "mathematics", "archaeology", "chemistry",
         "economics", "theology", "linguistics", "philosophy"),
        ("{l} had studied {v} before the war.", "A degree in {v} hangs above the stove of {l}."),
        "What did {n} study?",
    ),
)  # fmt: skip
"""Every pool has at least twelve values."""
