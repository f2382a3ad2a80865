"""The words of the built-in stories: tables of words that can be drawn, and what goes with each word.

WORDS[table][word] holds the word's properties: a string is a line of the grammar explained in stories.py, a tuple is
a table of the word's own. A property keeps a story sensible: what one does with a drum, what a crow steals.
"""


def _same(words: str, **properties) -> dict[str, dict]:
    """A table of words that share their properties."""
    return dict.fromkeys(words.split(", "), properties)


SHE = dict(he="she", him="her", his="her", He="She", His="Her", kid="girl")
HE = dict(he="he", him="him", his="his", He="He", His="His", kid="boy")
PRONOUNS = set(SHE)

GIRLS = _same(
    "Mia, Lily, Anna, Zoe, Ruby, Nora, Ella, Ivy, Rosa, Tess, Wendy, June, Hana, Polly, Daisy, Carla, Greta, Vera, "
    "Kate, Olga, Sara, Yuki, Fatima, Bella",
    **SHE,
)
BOYS = _same(
    "Tom, Ben, Leo, Max, Sam, Finn, Omar, Jack, Theo, Hugo, Noah, Paul, Oscar, Felix, Adam, Luke, Victor, Emil, "
    "Ravi, Kofi, Walter, George, Peter, Ian",
    **HE,
)

DOG = dict(
    comfort="[licked {his} hand|put a paw on {his} knee|gave a soft whine|leaned against {his} legs]",
    joy="[barked and barked|ran in circles|wagged from nose to tail|jumped up at everyone]",
    sleep="[snored at the foot of {his} bed|curled up on {his} blanket|slept on {his} slippers]",
)
CAT = dict(
    comfort="[rubbed against {his} legs|climbed onto {his} lap|gave a small meow|touched {his} nose with a paw]",
    joy="[purred like a little engine|danced around {his} feet|chased a leaf in circles|rolled over and over]",
    sleep="[purred at the foot of {his} bed|curled up on {his} pillow|slept in {his} slippers]",
)

# who steals what from a picnic
BERRIES = ("crow", "fox", "raccoon", "badger", "hedgehog")
CRUMBS = ("crow", "squirrel", "mouse", "goose", "duck", "raccoon")
MANY, ONE = dict(was="were", Is="Are", it="them"), dict(was="was", Is="Is", it="it")

WORDS: dict[str, dict[str, dict]] = {
    "girls": GIRLS,
    "boys": BOYS,
    "children": GIRLS | BOYS,
    "family": (
        _same("Mom, Grandma, Aunt Clara, Aunt May, Cousin Jill", **SHE)
        | _same("Dad, Grandpa, Uncle Joe, Uncle Bill, Cousin Hank", **HE)
    ),
    "traits": _same(
        "kind, quiet, curious, clever, cheerful, brave, gentle, funny, careful, merry, dreamy, friendly, patient, "
        "helpful, serious, lively, shy, bold, polite, stubborn"
    ),
    "hearts": _same("kind, brave, gentle, good, warm, big, golden, friendly, soft, loving, generous"),
    "colours": _same("red, blue, green, yellow, purple, pink, white, black, brown, silver, golden, gray"),
    "looks": _same("little, big, shiny, new, pretty, funny, fine, bright, plain, lovely, tiny, heavy, soft, smooth"),
    "holders": _same("box, basket, bucket, drawer, jar, bag, chest, bowl"),
    "homes": _same(
        "the bakery, the mill, the school, the pond, the fire station, the church, the market, the bridge, "
        "the post office, the train station, the park, the toy shop, the orchard, the lighthouse, "
        "the harbor, the stables, the castle, the library, the hospital, the river, the town hall, "
        "the barber shop, the fountain, the museum"
    ),
    "blooms": _same("red, blue, yellow, purple, pink, white, golden, silver"),
    "numbers": _same("three, four, five, six, seven, eight, nine, ten"),
    "few": _same("two, three, four, five, six"),
    "prices": _same("ten, twelve, fifteen, twenty, thirty"),
    # what a child is known for: the frames of a story, said first and remembered at its end
    "hobbies": _same(
        "sing, dance, whistle, tell jokes, make up rhymes, turn cartwheels, juggle, hop on one leg, paint, "
        "play the flute, count things, walk backward"
    ),
    "jobs": _same(
        "baker, pilot, doctor, sailor, farmer, painter, firefighter, teacher, detective, captain, "
        "gardener, dancer, cook, judge, mayor, clown, postman, beekeeper"
    ),
    "sayings": _same(
        "Little by little, One step at a time, Every cloud goes by, Kind words open doors, "
        "Slow and steady, After rain comes sun, Brave hearts find a way, Tomorrow is a new day, "
        "Nothing is lost forever, A friend is never far, Try and try again, The moon sees everything, "
        "Small steps go far, Patience wins the day, Sleep on it, Look twice"
    ),
    "pets": dict(dog=DOG, puppy=DOG, cat=CAT, kitten=CAT),
    "petnames": _same(
        "Biscuit, Pepper, Button, Waffles, Pickle, Patch, Ginger, Muffin, Domino, Pumpkin, Cookie, Bean, "
        "Snowball, Marble, Toffee, Peanut, Whisker, Rocket, Noodle, Popcorn, Sunny, Shadow"
    ),
    "coats": _same("brown, black, white, gray, golden, spotted, striped, cream, ginger"),
    "wears": {
        "hat": dict(
            sad="pulled {his} {colour8} hat down over {his} [eyes|ears|nose]",
            glad="threw {his} {colour8} hat [into the air|as high as a house]",
            off="hung {his} {colour8} hat [on its hook|on the bedpost|over the lamp]",
        ),
        "scarf": dict(
            sad="hid {his} face in {his} {colour8} scarf",
            glad="waved {his} {colour8} scarf [like a flag|in the air|round and round]",
            off="[folded|took off|put away] {his} {colour8} scarf",
        ),
        "coat": dict(
            sad="pushed {his} hands deep into the pockets of {his} {colour8} coat",
            glad="spun around until {his} {colour8} coat flew [out like wings|like a flag]",
            off="[hung up|took off|brushed] {his} {colour8} coat",
        ),
        "cape": dict(
            sad="pulled {his} {colour8} cape [over {his} head|around {him}]",
            glad="[ran|spun|danced] in circles until {his} {colour8} cape flew like wings",
            off="laid {his} {colour8} cape [over a chair|at the foot of the bed]",
        ),
    },
    "toys": {
        "ball": dict(play="[bounced|rolled] it [down the path|against the wall|across the yard]"),
        "drum": dict(play="[played|beat] it [until everyone laughed|like thunder|as softly as rain]"),
        "doll": dict(play="[combed its hair|told it secrets|sang songs to it|took it for walks]"),
        "toy train": dict(play="pushed it [around the rug|under the table|along the hall]"),
        "robot": dict(play="made it [march|dance|talk] [in the kitchen|on the rug|on the stairs]"),
        "puppet": dict(play="made it [bow|dance|tell stories] for [the family|the neighbors|the birds]"),
        "kite": dict(play="flew it [on the hill|over the field|behind the school]"),
        "teddy bear": dict(play="[hugged it|whispered to it|built little houses for it|read books to it]"),
        "truck": dict(play="filled it with [sand|stones|leaves|acorns]"),
        "little boat": dict(play="sailed it [in the bathtub|on the pond|through the puddles]"),
    },
    "spots": _same(
        "under the bed, behind the sofa, in the toy box, under the kitchen table, behind the curtains, "
        "in the shed, under the stairs, in the laundry basket, behind the big chair, under the apple tree, "
        "beside the front door, on the top shelf, on the garden wall, in the wheelbarrow, "
        "behind the bookcase, next to the stove, in the hall closet, beside the pond"
    ),
    "cuddly": _same("rabbit, bear, monkey, penguin, dragon, lion, elephant, mouse, fox, turtle, owl, tiger"),
    "outings": {
        "beach": dict(
            wish="[build a sand castle|swim in the waves|look for shells|dig a deep hole]",
            cloth="the sea",
            build="{hero} piled up [pillows|cushions] for [a sand castle|an island] and hid [nuts|buttons] for shells.",
            play="swam between the chairs and [looked for treasure|ran away from sharks|fished for socks]",
        ),
        "zoo": dict(
            wish="[see the lions|wave to the monkeys|watch the penguins|hear the elephants]",
            cloth="the lion's house",
            build="{hero} set [all the toy animals|the teddy bears] [in a row|in boxes] and [wrote|painted] signs.",
            play="roared like lions and [climbed the sofa like monkeys|walked like penguins|slept like bears]",
        ),
        "lake": dict(
            wish="[row a boat|catch a fish|feed the ducks|skip stones]",
            cloth="the water",
            build="A [big box|laundry basket] became the boat, and two [spoons|brooms] became the oars.",
            play="rowed from shore to shore and caught [slippers|socks|spoons] [with a stick and a string|by hand]",
        ),
        "circus": dict(
            wish="[see the clowns|watch the acrobats|hear the big drum|eat popcorn]",
            cloth="the ring",
            build="{hero} painted [a red nose|a big smile] on {his} face and used [a pot|a box] as a drum.",
            play="walked along a string and [balanced spoons|juggled socks|jumped through a hoop]",
        ),
        "farm": dict(
            wish="[ride the pony|feed the hens|pet the new lambs|drive the tractor]",
            cloth="the meadow",
            build="The pillows became [sheep|cows|pigs], and [a chair|the sofa] became the pony.",
            play="rode the pony, fed the [sheep|hens|pigs] and [milked a cushion|gathered paper eggs]",
        ),
    },
    "fragile": _same("vase, teapot, bowl, plate, jug, cup, lamp, flowerpot"),
    "hides": _same(
        "under the rug, behind the sofa, in the coal bucket, under the bed, in a boot, behind the books, "
        "in the umbrella stand, under the doormat"
    ),
    "foods": {
        "bread": dict(thieves=CRUMBS, **ONE),
        "honey cake": dict(thieves=("fox", "badger", "raccoon", "squirrel", "crow"), **ONE),
        "cheese": dict(thieves=("fox", "crow", "mouse", "raccoon", "badger"), **ONE),
        "corn": dict(thieves=CRUMBS, **ONE),
        "grapes": dict(thieves=BERRIES, **MANY),
        "cherries": dict(thieves=BERRIES, **MANY),
        "plums": dict(thieves=BERRIES, **MANY),
        "nuts": dict(thieves=("squirrel", "mouse", "crow", "raccoon"), **MANY),
        "carrots": dict(thieves=("rabbit", "mouse", "goose", "raccoon"), **MANY),
        "cookies": dict(thieves=CRUMBS, **MANY),
    },
    "animals": {
        "crow": dict(babies="chicks", den="an old nest", call="cawed [once|softly]"),
        "goose": dict(babies="goslings", den="the reeds", call="gave a [soft|proud] honk"),
        "duck": dict(babies="ducklings", den="the reeds", call="gave a [soft|happy] quack"),
        "squirrel": dict(babies="babies", den="a hollow tree", call="flicked its tail"),
        "mouse": dict(babies="babies", den="an old boot", call="gave a [tiny|happy] squeak"),
        "rabbit": dict(babies="bunnies", den="a thick bush", call="[wiggled|twitched] its nose"),
        "fox": dict(babies="cubs", den="a heap of stones", call="lowered its head"),
        "badger": dict(babies="cubs", den="a fallen tree", call="gave a soft grunt"),
        "raccoon": dict(babies="cubs", den="a hollow log", call="lifted one paw"),
        "hedgehog": dict(babies="babies", den="a pile of leaves", call="gave a little sniff"),
    },
    "meadows": _same("by the lake, in the meadow, on the green hill, at the edge of the woods, under the old willow"),
    "rides": {
        "wagon": dict(mishap="A wheel came off and rolled into [a ditch|the pond|the roses].", ride="rode"),
        "scooter": dict(mishap="A wheel came off and rolled [under the hedge|down the lane].", ride="rode"),
        "tricycle": dict(mishap="It tipped over, and [one pedal|the bell] [fell|broke] off.", ride="rode"),
        "sled": dict(mishap="[Snap|Crack]! The rope broke, and both of them sat down in the snow.", ride="rode"),
        "swing": dict(mishap="[Snap|Crack]! The rope broke, and both of them sat down in the mud.", ride="swung"),
        "go-cart": dict(mishap="It rolled off [all by itself|without them] and hit [a tree|the fence].", ride="drove"),
    },
    "counts": _same("ten, twelve, fifteen, twenty, thirty, fifty, forty, ninety, sixty"),
    "chores": {
        "water the tomatoes": dict(
            clue="{he} saw [a flower hanging its head|a dry, brown leaf] beside the path",
            did="gave every plant a long, cool drink",
            end="the tomatoes stood [tall|straight] and shone [in the evening light|like little lamps]",
        ),
        "feed the hens": dict(
            clue="{he} heard [a bird calling for food|a rooster crow far away]",
            did="threw grain to the hungry hens, [handful by handful|who came running]",
            end="the hens were [full|fast asleep], and [one|the smallest] had laid [an egg|a brown egg]",
        ),
        "bring in the washing": dict(
            clue="[a drop of rain fell on {his} nose|{he} saw a dark cloud come over the hill]",
            did="pulled every [sock|shirt] and sheet from the line [in time|before the first big drops]",
            end="the [sheets|shirts] lay dry and [folded|neat] on the table while it [poured|rained] outside",
        ),
        "close the garden gate": dict(
            clue="{he} saw [a goat in a field|a cow look over a fence and chew]",
            did="chased the neighbor's goat away from the [beans|cabbages] and shut the gate",
            end="the gate was closed, and not one [bean|cabbage] was missing",
        ),
        "walk the old dog": dict(
            clue="{he} heard a dog [bark|howl] far away",
            did="took the old dog all the way [around the field|to the bridge] [and back|and home again]",
            end="the old dog lay [on the mat|by the stove], tired and happy",
        ),
    },
    "funs": {
        "river": dict(why="We can [build a dam|catch tadpoles]", fun="built a dam [of stones|out of sticks]"),
        "hill": dict(why="[The wind is perfect|We can fly kites]", fun="flew kites [and ran|until their arms hurt]"),
        "barn": dict(why="[The kittens are here|There are new kittens]", fun="played with [five|six] tiny kittens"),
        "meadow": dict(why="[It is full of|You should see the] grasshoppers", fun="chased grasshoppers in the grass"),
        "pond": dict(why="We can sail [paper|bark] boats", fun="raced their boats [across|from side to side]"),
        "tree house": dict(why="We can [be pirates|play ship]", fun="were [pirates|sailors] on a wild sea"),
    },
    "gifts": {
        "teapot": dict(use="[made tea in|poured tea from] it"),
        "scarf": dict(use="put it on [at once|and would not take it off]"),
        "hat": dict(use="put it on [at once|and would not take it off]"),
        "lamp": dict(use="lit it [at once|right away]"),
        "umbrella": dict(use="opened it right there in the kitchen"),
        "music box": dict(use="opened it, and [a song|a little waltz] filled the room"),
        "clock": dict(use="set it on the [shelf|wall] and listened to it tick"),
        "vase": dict(use="filled it with [daisies|wild flowers|tulips]"),
    },
    "works": {
        "rake leaves": dict(did="raked leaves from [garden|yard] to [garden|yard]", hurt="arms"),
        "wash windows": dict(did="washed windows [up and down the street|until they shone]", hurt="arms"),
        "sell lemonade": dict(did="squeezed lemons and sold lemonade [at the corner|by the gate]", hurt="fingers"),
        "carry baskets": dict(did="carried baskets [from the market|up the hill] for the neighbors", hurt="backs"),
        "walk dogs": dict(did="walked [big|lazy] dogs and [small|wild] dogs", hurt="feet"),
        "pick apples": dict(
            did="climbed ladders and picked apples [row by row|until the trees were bare]", hurt="legs"
        ),
    },
    "sounds": {
        "Scratch, scratch": dict(makers=("kitten", "mouse", "hedgehog"), called="Scratch"),
        "Thump, thump": dict(makers=("rabbit", "puppy"), called="Thump"),
        "Crunch, crunch": dict(makers=("hedgehog", "raccoon", "mouse"), called="Crunch"),
        "Squeak, squeak": dict(makers=("mouse", "puppy", "bat"), called="Squeak"),
        "Tap, tap, tap": dict(makers=("crow", "kitten", "bat"), called="Tap"),
        "Rattle, rattle": dict(makers=("raccoon", "kitten", "puppy"), called="Rattle"),
    },
    "rooms": _same("kitchen, attic, cellar, pantry, hall, laundry room"),
    "monsters": _same("monster, ghost, dragon, robber, giant, pirate"),
    "plants": _same("rose, tulip, poppy, sunflower, daisy, dahlia"),
    "potspots": _same("on the windowsill, beside the back door, on the balcony, under the eaves, next to the well"),
    "patients": {
        "sparrow": dict(
            part="wing", eats="seeds", leave="flew up into the [sky|treetops]", sound="a tap on the window"
        ),
        "robin": dict(
            part="wing", eats="berries", leave="flew [up and away|over the roof]", sound="a song at the window"
        ),
        "barn owl": dict(part="wing", eats="worms", leave="rose without a sound", sound="a hoot from the roof"),
        "duckling": dict(part="foot", eats="oats", leave="ran straight to the pond", sound="a quack at the door"),
        "rabbit": dict(part="leg", eats="clover", leave="hopped into the tall grass", sound="a thump on the step"),
        "hedgehog": dict(part="paw", eats="apples", leave="walked off under the hedge", sound="a snuffle at the door"),
        "squirrel": dict(part="paw", eats="nuts", leave="ran up the nearest tree", sound="a scratch at the window"),
    },
    "flyers": _same("kite, paper plane, ball, frisbee, glider"),
    "trees": _same("pine, chestnut tree, maple, linden, birch"),
    "things": _same("left shoe, sun hat, jump rope, raincoat, school bag, rubber boot, tennis ball, lunch box"),
    "climbers": _same("squirrel, crow, magpie, raccoon, cat, jay"),
    # the animals' own stories
    "critters": _same("hedgehog, rabbit, mouse, squirrel, mole, bear cub, fox cub, badger, hamster, beaver"),
    "crittergirls": _same(
        "Hazel, Clover, Fern, Willow, Nutmeg, Bramble, Tansy, Maple, Holly, Pearl, Poppy, Juniper",
        **SHE,
    ),
    "critterboys": _same(
        "Pip, Moss, Tumble, Acorn, Bristle, Thistle, Chip, Rusty, Dusty, Pebble, Twig, Burr",
        **HE,
    ),
    "drifters": _same("butterfly, dragonfly, feather, moth, bird, ladybug, bee, firefly, seagull"),
    "guides": _same("barn owl, toad, snail, heron, turtle, raven, goat, frog, magpie, donkey, bullfrog, pelican"),
    "landmarks": _same("flag, bell, mushroom, lantern, bench, mailbox, ladder, rock, barrel, teapot, wheel, boot"),
    "nightsounds": _same(
        "stream, waterfall, mill wheel, frogs, village bell, geese, sea, crickets, windmill, wild ducks, "
        "brook, church clock"
    ),
    "heaps": _same("baskets, sacks, heaps, buckets, barrels, bags"),
    "stores": _same(
        "acorns, hazelnuts, blackberries, mushrooms, chestnuts, rose hips, apples, beechnuts, walnuts, "
        "cranberries, pears, seeds"
    ),
    "holes": _same(
        "under the roots, in the hollow oak, behind the waterfall, in the old wall, under the flat stone, "
        "behind the big stump, beside the spring, below the old bridge, at the edge of the moss"
    ),
    "vessels": _same("bowl, bucket, jug, cup, pan, washtub, teapot"),
    "moonspots": _same(
        "on the flat rock, beside the well, in the clearing, on an old stump, between two ferns, under the open sky"
    ),
}
