"""The closed word lists of the pocket world; nouns that follow "a" start with a consonant."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


WOMEN = _words(
    "Mira Ann Lena Nora Ida Vera Tilda Ruth Elsa Greta Hana Dora "
    "Mabel Wanda Zoe Cora Lucy Olga Petra Sela Bela Inga Rosa Yara"
)
MEN = _words(
    "Tom Olaf Bram Hugo Ivan Karl Otto Finn Noel Sam Rolf Theo "
    "Ugo Emil Anton Boris Felix Jonas Leo Max Pavel Quinn Viktor Walt"
)
TOWNS = _words(
    "Dorn Varn Kelby Mossel Tarrow Hexley Brill Pendle Norrick Fenwold "
    "Garrow Ilmar Jask Rusk Sorby Tilven Uxley Wexmoor Yarrick Zand"
)
ANIMALS = _words(
    "floop gop sibble trol wumm narl pettin quog brask dril fenn glim hork jubb kib lorrin "
    "mosk nupp pank rell snib vib wex yab zorn crim dopple plin tuzz murl skeb hadd"
)
PLANTS = _words(
    "bambel birrow corliss dunnel felth gorrel hepple juppa kessel lomba "
    "mirrel nettin penna quenna rinsel sorrik torvin vanna welder zinnel"
)
MATERIALS = _words(
    "brunite selk dolm ferrin kald osmar pell tarsk vint grane hollen jessel "
    "mord noctin cask rolt spune tweld ulmite verrin wask yolm zeft lirrin"
)

REGIONS = ("Northmark", "Southmark", "Eastvale", "Westvale", "Midland")
RIVERS = tuple(f"the {name}" for name in _words("Orn Vell Sark Mip Lodd Ister Krenn Tave Wyle Eska"))
GOODS = _words("cheese salt rope wool honey paper soap tea boots bells")
WEATHER = ("rain", "snow", "wind", "sun", "fog")
COLOURS = _words("red blue green white black yellow brown grey")
INSTRUMENTS = _words("flute drum harp fiddle horn pipe lute bell")
FOODS = _words("bread soup fish plums nuts pears cakes beans eggs rice")
SOUNDS = _words("hums clicks barks whistles growls squeaks chirps roars")
SEASONS = ("spring", "summer", "autumn", "winter")

TRADES = {  # trade: (tool, place of work, what it makes)
    "baker": ("oven", "bakery", "bread"),
    "smith": ("hammer", "forge", "nails"),
    "weaver": ("loom", "hall", "cloth"),
    "farmer": ("plough", "field", "corn"),
    "fisher": ("net", "harbour", "fish"),
    "potter": ("wheel", "cellar", "pots"),
    "miller": ("millstone", "mill", "flour"),
    "tailor": ("needle", "shop", "coats"),
    "mason": ("chisel", "quarry", "walls"),
    "hunter": ("bow", "forest", "meat"),
    "cook": ("pan", "kitchen", "soup"),
    "painter": ("brush", "tower", "pictures"),
    "gardener": ("spade", "garden", "flowers"),
    "joiner": ("saw", "barn", "tables"),
    "scribe": ("pen", "library", "letters"),
    "doctor": ("knife", "house", "pills"),
}

COVERINGS = {  # covering: (class, what the young do)
    "fur": ("mammal", "drink milk"),
    "feathers": ("bird", "sit in nests"),
    "scales": ("fish", "swim at once"),
    "plates": ("beetle", "hide in sand"),
}
DIETS = {"grass": "flat", "meat": "sharp", "nuts": "strong", "flies": "tiny"}  # diet: teeth
HOMES = {  # home: skill
    "the forest": "climb",
    "the lake": "swim",
    "the desert": "dig",
    "the mountains": "jump",
    "the caves": "see in the dark",
}
GROUNDS = {"the field": "much sun", "the swamp": "much water", "the woods": "deep shade", "the dunes": "warm sand"}
PARTS = {"root": "boil it", "leaf": "eat it raw", "fruit": "make jam from it", "seed": "grind it"}
KINDS = {  # kind: (in fire, in water, what people make of it)
    "metal": ("glows", "sinks", "nails"),
    "wood": ("burns", "floats", "boats"),
    "stone": ("cracks", "sinks", "walls"),
    "cloth": ("smokes", "gets wet", "coats"),
    "wax": ("melts", "floats", "candles"),
    "clay": ("gets hard", "gets soft", "pots"),
}
GEAR = {"rain": "umbrellas", "snow": "sledges", "wind": "strong walls", "sun": "straw hats", "fog": "bright lamps"}

ITEMS = _words("plums nuts pears cakes beans eggs coins stones cards shells beads nails books cups keys ropes")
BOXES = _words("boxes bags baskets jars")
THINGS = _words(
    "cart barn box chest bag basket table shelf bottle jar book chair "
    "lamp drum rope boat stone wheel ladder bench crate sack pot barrel"
)
