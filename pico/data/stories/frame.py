"""How stories begin and end, and phrases all of them use: lines of the grammar explained in stories.py.

It all starts at `story:`.
"""

GRAMMAR = r"""
story:
    Once upon a time, there was a {trait=traits} <kid>. <child>
    There once was a {trait=traits} <kid> <from>. <child>
    In a <sleepy> [town|village] <near>, there lived a {trait=traits} <kid>. <child>
    {hero=children} was a {trait=traits} {hero.kid} <from>. <child>
    This is [the story of|a story about] a {trait=traits} <kid>. <child>
    Deep in the [forest|woods|green valley|mountains], <critter>
    [Far away|Long ago], [between two hills|where the river bends|at the foot of a mountain|on a green \
        island], <critter>

kid:
    girl [named|called] {hero=girls}
    boy [named|called] {hero=boys}

from:
    from a <sleepy> [town|village]
    who lived <near>
    from the [big|old] city

near:
    by the sea
    near the hills
    beside a [wide|slow] river
    on a green island
    behind the mountains

child:
    <house>

    <frame>

    ~

    <plot>

    {frame.close}

    <end>

house:
    {He} lived in a <smallish> {colour9=colours} house [next to|behind|opposite|near] {home=homes}.
    {His} house was {colour9=colours} and stood [next to|behind|opposite|near] {home=homes}, <houselook>.
    The {colour9=colours} house [next to|behind|opposite|near] {home=homes} was where {he} lived.

houselook:
    with [roses|ivy|beans] on the walls
    under [two|three|four] [tall|old] trees
    and the [door|roof|gate] [creaked|sang] in the wind

end:
    [All|Everything] was [quiet|peaceful] in the {colour9} house.
    Outside, the [moon|evening star|wind|rain] looked in at the {colour9} house.
    And in the {colour9} house near {home}, the last [light|lamp|candle] went out.
    Somewhere near {home}, an owl [called|hooted] [once|twice|three times], and [all was still|the day was \
        over].
    The {colour9} house still smelled of <dish> and <soup> soup, and everyone slept.
    That is the [end|whole story] of {hero} from the {colour9} house near {home}.

frame:
    {frame:hobby}More than anything, {he} loved to {hobby=hobbies}, [in the bathtub|on the stairs|in the \
        yard|at school].
    {frame:hobby}{He} liked to {hobby=hobbies} [all day long|from morning to night|for {his} family|at \
        breakfast].
    {frame:pet}{His} best friend was a {coat=coats} {petkind=pets} [named|called] {pet=petnames} that \
        <petdid>.
    {frame:pet}{He} had a {coat=coats} {petkind=pets}, {pet=petnames}, that <petdid>.
    {frame:wear}{He} [always|often] wore a {colour8=colours} {wear=wears}, <wearwhen>.
    {frame:wear}Everyone knew {him} by {his} {colour8=colours} {wear=wears}, which <wearlook>.
    {frame:saying}{elder=family} had taught {him} [a wise|an old|a short] saying: "{saying=sayings}."
    {frame:saying}"{saying=sayings}," {elder=family} [always|often] told {him}.
    {frame:dream}When {he} grew up, {he} wanted to be a {job=jobs} [far away|on the moon|more than \
        anything].
    {frame:dream}One day, {he} was going to be a {job=jobs}. {He} [told everyone|was sure of \
        that|practiced every day].

petdid:
    went with {him} [everywhere|to school|up every hill]
    [stole|collected] [socks|sausages|slippers]
    was afraid of [bees|frogs|thunder]
    [liked|loved] [cheese|jam|toast]

wearwhen:
    even [at breakfast|in summer|in bed|at school]
    rain or shine
    because it [kept {him} warm|brought good luck]

wearlook:
    had [two|four|six] big [buttons|pockets|patches]
    was [far|much] too big
    had [once|long ago] belonged to {elder=family}

hobby.sad:
    {He} did not even want to {hobby}.
    For once, {he} had no wish to {hobby}.
    How could anyone {hobby} [now|at a time like this|on such a <dayname>]?
    {He} tried to {hobby}, [but it was no use|but it did not help|but {he} had to stop].
    <dayname> was no day to {hobby}.

hobby.glad:
    {He} began to {hobby} [at once|right there|with {his} eyes shut|<until>].
    It was a <nice> moment to {hobby}, so {he} did.
    {He} had to {hobby} [a little|then and there|in front of <someone>].

hobby.close:
    That night {he} dreamed that [<someone>|the whole school|the moon] learned to {hobby}.
    Before bed, there was time to {hobby} [once more|for a little while|with <dish> in one hand].
    The next <time>, {hero} [was ready|wanted|had time] to {hobby} again.
    "Now I will {hobby}," <herosaid>, and {he} did, <until>.

pet.sad:
    {pet} {petkind.comfort}.
    Even {pet} [looked <sorry>|hung down both ears|did not want any <dish>].
    The {petkind} [understood|knew]. {pet} {petkind.comfort}.

pet.glad:
    {pet} {petkind.joy}.
    The {petkind} was <glad>, too. {pet} {petkind.joy}.
    And {pet}? {pet} {petkind.joy}.

pet.close:
    That night, {pet} {petkind.sleep} and dreamed of <dish>.
    {pet} {petkind.sleep}, and {hero} told the {petkind} the whole story again.
    "Good night, {pet}," <whispered> {hero}. But {pet} [was already asleep|only yawned|was chasing \
        <someone> in a dream].
    {hero} gave {pet} some <dish> and [went|hopped|danced] to bed.

wear.sad:
    {He} {wear.sad}.
    {hero} [said nothing and|sat down and] {wear.sad}.
    Without a word, {he} {wear.sad}.

wear.glad:
    {He} {wear.glad}.
    {hero} [shouted|whistled|sang] and {wear.glad}.
    With a [loud cheer|happy shout|big laugh], {he} {wear.glad}.

wear.close:
    When it was dark, {hero} {wear.off} and [went to bed <happily>|dreamed of <someone>].
    That night {he} {wear.off}, climbed into bed, and [smiled in the dark|thought of <dish>|hummed \
        <until3>].
    {He} fell asleep with {his} {colour8} {wear} [still on|over {his} nose|full of <dish>].

saying.sad:
    "{saying}," {he} <whispered>, but {his} voice [shook|was <small>].
    {He} tried to remember what {elder} had said. "{saying}," {he} <whispered>.
    Was it [really|still] true, what {elder} always said? "{saying}"?

saying.glad:
    "{saying}!" {he} [laughed|sang|cried|told <someone>].
    So {elder} [was|had been] right: "{saying}."
    {He} thought of {elder} and <laughed>.

saying.close:
    "{saying}," {he} <whispered> that night, [just before|as] {he} fell asleep.
    Later, {he} told {elder} all about it over <dish> and <dish3>. "{saying}!"
    In the evening, {hero} wrote "{saying}" on a <color> piece of paper and hung it over {his} \
        [bed|desk|door].

dream.sad:
    "A {job} would know what to do," {he} <whispered>.
    What would a {job} do now? {hero} [did not know|had no idea|thought <while>].
    {He} did not feel like a {job} [at all|any more].

dream.glad:
    {He} felt as <glad> as a {job} [on a holiday|with <dish>|on a <weather> <dayname>].
    "Just like a real {job}!" {he} [thought|<said>|laughed].
    No {job} in the world could have been [happier|prouder|more <glad>].

dream.close:
    That night {he} dreamed of being a {job} [far away|with a <color> <load>|who met <someone>].
    "You will make a <nice> {job} one day," {he} heard {helper} say as {he} fell asleep.
    And {hero}? {He} still wants to be a {job}, [now more than ever|with a <color> <load>|and nobody \
        doubts it].

sad:
    {hero} felt <sorry>, like <sadlike>. {frame.sad}
    [A tear|Two tears|A big tear] ran down {hero}'s [cheek|face|nose|chin]. {frame.sad}
    {hero}'s heart [was heavy|sank|felt like <sadlike>]. {frame.sad}
    {hero} [sat down|bit {his} lip|sighed] and felt like <sadlike>. {frame.sad}

sadlike: a wet sock, a boat without a sea, the last apple on the tree, a lost mitten, a kite without wind, \
    a cup without a handle, a rainy <dayname>, a snowman in spring, a bell that cannot ring, a cold \
    pancake, a single shoe, a fish in a bucket, a candle in the wind, yesterday's soup

joy:
    {hero} was as <glad> as <gladlike>. {frame.glad}
    "[Hooray|Yippee|Yes|Hurray]!" [shouted|cried|cheered] {hero}. {frame.glad}
    "What a <nice> [moment|feeling|surprise|<dayname>]!" thought {hero}. {frame.glad}
    {hero} [jumped|danced|hopped|sang] like <gladlike>. {frame.glad}

gladlike: a frog in the rain, a dog with two tails, a king with a new hat, a bee in the clover, a goat on \
    a roof, a bird in May, a fish in the sea, a pig in the mud, a child in the snow, a mouse in the \
    cheese, a sailor in port, a baker on <dayname>, a lamb in spring, a bear with honey
tale: stories, the news, jokes, everything, a fairy tale
until3: a song, a tune, for a while
dish3: jam, milk, honey, cream, tea

oneday:
    One <weather> <time>
    One day
    On a <weather> <dayname>
    On <dayname> <time>

herosaid:
    said {hero}
    {he} said
    {hero} said

friendsaid:
    said {friend}
    {friend} said

time: morning, afternoon, evening
dayname: Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday
weather: warm, sunny, windy, cloudy, rainy, cold, misty, bright, quiet, gray, foggy, chilly, stormy, mild
fine: warm, sunny, bright, lovely, fine, clear, mild, golden
sleepy: small, sunny, quiet, busy, windy, sleepy, pretty, noisy
small: small, tiny, little, thin
smallish: small, tiny, little, narrow, crooked, cozy, tall, round
big: big, huge, great, giant, tall, mighty
sorry: sad, unhappy, miserable, gloomy, lonely, terrible, awful, lost, worried, helpless
glad: happy, glad, proud, cheerful, merry, pleased, delighted, thankful
nice: wonderful, lovely, happy, beautiful, splendid, great, marvelous, perfect, fine
happily: happily, proudly, with a smile, with a song, cheerfully
ran: ran, hurried, raced, rushed, dashed, hopped, galloped
went: went, walked, wandered, strolled, marched
saw: saw, spotted, noticed, discovered
laughed: laughed, giggled, grinned, smiled, chuckled, winked
whispered: whispered, said, murmured, mumbled
asked: asked, cried, called, wondered
shouted: cried, shouted, called, yelled
softly: softly, quietly, gently, slowly, shyly, calmly
soon: Soon, Before long, After a while, A little later, In no time, Not long after, Moments later
suddenly: Suddenly, All at once, Just then, At that moment, All of a sudden, Without warning
atlast: At last, Finally, In the end, After a long time
while: for a moment, for a while, for a minute, for a long time, for a bit
mood: sleepy, fat, thin, proud, muddy, lazy, spotted, friendly, noisy, hungry, dusty, white, black, brown, \
    striped, merry, busy, gray, grumpy, dancing
beast: cat, dog, goat, goose, parrot, horse, donkey, hen, pony, cow, pig, sheep, duck, rabbit, crow, turkey
person: baker, farmer, sailor, nurse, painter, clown, gardener, soldier, cook, tailor, barber, fisherman, \
    teacher, waiter, king, dancer
look: little, big, shiny, new, funny, heavy, pretty, dusty, plain, strange, lovely, bright
color: red, blue, green, yellow, purple, pink, white, black, brown, silver, golden, gray
load: hat, bag, basket, bicycle, coat, wheelbarrow, drum, suitcase, violin, bucket, ladder, broom, cake, \
    lamp, pillow, fish, kettle, trumpet, sled, mirror
soup: tomato, pea, noodle, onion, potato, bean, carrot, pumpkin, chicken, fish, turnip, beet, mushroom, \
    cabbage
dish: pancakes, cheese, apple pie, fresh bread, dumplings, butter, meatballs, plums, rice, toast, noodles, \
    corn, pears, crackers, peanuts, sweet rolls
yes: Yes, Of course, Good, All right, Gladly, Fine
oh: Oh dear, Wow, My goodness, Goodness, Dear me, Oh my, Oh no
well: Well, Hmm, Look, Listen, Now then, Aha
praise: Thank you for telling me, That was brave, You did the right thing, I am glad you told me, I am \
    proud of you
until: until dark, until supper, until the stars came out, for hours, all <time>, until their feet hurt
outdoors: under a hedge, behind the shed, near the gate, on the steps, by the well, next to the fence, \
    under a bush, beside the road, in the tall grass, behind a tree
holder: box, basket, bucket, drawer, jar, bag, chest, bowl
seat: on the steps, on the wall, under a tree, on the grass, by the fence, on a bench, at the gate, on an \
    old log
said: said, called, cried, exclaimed
sound: loud, funny, strange, scary, soft, low

someone:
    a <mood> <beast>
    a <person> with a <look> <color> <load>

passing:
    On the way they [met|passed|saw] <someone>.
    They <ran> past <someone> and <someone>.
    A <mood> <beast> [looked after|followed|stared at|made way for] them.

outside:
    Outside, <someone> [went by|hurried past|stopped and <went> on].
    The [house|kitchen|room] [smelled|still smelled] of <dish> [and|or maybe] <soup> soup.

supper:
    [For|At] dinner, there was <soup> soup [with|and] <dish>, [and nobody left any|while {hero} told \
        <tale>|two bowls each].
    They ate <dish> [with|and] <soup> soup, and {hero} [sang|hummed|<laughed>] [all the while|between the \
        bites].

plot:
    <lost>
    <rain>
    <broken>
    <newcomer>
    <picnic>
    <turns>
    <promise>
    <gift>
    <noise>
    <seed>
    <patient>
    <stuck>

when:
    one <weather> <time>
    one day
    on a <weather> <dayname>
    on <dayname> <time>
"""
