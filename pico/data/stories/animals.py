"""Stories about animals, as lines of the grammar explained in stories.py."""

GRAMMAR = r"""
critter:
    in a [warm|small|deep|dry] hole {place=holes}, there lived a <small> <kit>. <wayhome>
    there lived a <small> <kit> with a {trait=hearts} heart. <winter>
    there lived a {trait=traits} little <kit>. <moon>

kit:
    {kind=critters} [named|called] {hero=crittergirls}
    {kind=critters} [named|called] {hero=critterboys}

mate:
    {kind2=critters} [named|called] {friend=crittergirls}
    {kind2=critters} [named|called] {friend=critterboys}

wayhome:
    By the entrance stood a {look=looks} {colour=colours} {thing=landmarks}, and at night you could hear \
        the {sound=nightsounds}.
    From {his} bed, {hero} could hear the {sound=nightsounds}, and outside stood a {look=looks} \
        {colour=colours} {thing=landmarks}.
    "Always stay near the {colour=colours} {thing=landmarks} and the {sound=nightsounds}," {his} mother \
        [often|always] said.

    ~

    One <weather> <time>, a {colour3=colours} {thing2=drifters} [came floating|danced|sailed] past {hero}. \
        {He} [followed|ran after] it [over|across] [the bridge|a field|the stepping stones].
    But <when>, {hero} saw a {colour3=colours} {thing2=drifters} and <ran> after it. They passed a <mood> \
        <beast2> and a <mood> <beast2>.

    Then the {thing2} was gone, and [it was getting dark|the sun went down]. {hero} felt like <sadlike>.
    <atlast> the {colour3} {thing2} [rose|flew up] into the sky. {hero} [sat down|curled up] and felt \
        <sorry>, like <sadlike>.

    ~

    "Who is [crying|that] [under my tree|in the dark]?" <asked> a <mood> {guide=guides}.
    An old {guide=guides} came by, [on the way home|with a <look> <holder>]. "[Why are you crying|What is \
        the matter]?"

    "I [followed|went after] a {colour3} {thing2}," <herosaid>, "and now I am lost."
    "I want to go home," <herosaid>. "There was a {colour3} {thing2}, and I did not [look back|watch the \
        path]."

    "[Do you know what|Tell me what] your home looks like." "[There is a|It has a] {colour} {thing}. It is \
        {place}."
    The {guide} thought <while>. "What do you remember?" "[A|The] {colour} {thing}. And our hole is \
        {place}."

    "It is too dark for that. What do you hear from your bed?" "The {sound}!"
    "At night, ears are better than eyes. What do you hear in bed?" "The {sound}," {hero} <whispered>.

    So they [kept very still|held their breath]. And there, [far|not so far] away, they heard the {sound}.
    "Then listen." [At first|For a while] there was only a <mood> <beast2>. Then they heard the {sound}.

    They <went> toward it, and the {guide} [hummed|told jokes]. <suddenly> they <saw> the {colour} {thing}!
    The {guide} went [ahead|first], and {hero} [followed|came after], until {he} <saw> the {colour} {thing}!

    ~

    {His} mother [came running|ran out]. "[I looked for you everywhere|There you are]!" {hero} was as \
        <glad> as <gladlike>.
    {His} mother [laughed|cried] for joy. There was <soup> soup with <dish>, and the {guide} told [one \
        more|a <nice>] joke.

    Then {hero} lay in bed, {place}, and listened to the {sound} until {he} fell asleep.
    The next day, the {colour3} {thing2} came by again. {hero} [waved|smiled] and [stayed where {he} \
        was|let it go].
    And when {he} sees a {thing2} today, {he} [waves|smiles] and looks back to the {colour} {thing} first.

winter:
    All [fall|through the fall], {hero} gathered {food=stores} and [hid|kept] them {place=holes}.
    Winter was coming, so {hero} [carried|dragged|rolled] {food=stores} to a <dry> place {place=holes}.

    <soon>, {he} had {number=numbers} <big> {holder=heaps}, [enough for months|and was <glad>].
    In the end there were {number=numbers} <big> {holder=heaps}. {hero} counted them [twice|every \
        <time>|for fun].

    ~

    <oneday>, somebody knocked. It was a <mate>, [wet|thin|pale] and [cold|hungry|tired|lost|sad].
    A <mate> came up the path, [limping|shivering|trembling] and with an empty <holder>.

    "[The flood|A storm] took my {food2=stores}," <friendsaid> <softly>. "I have nothing left."
    "I had a hole full of {food2=stores}," <friendsaid>, "but [a storm|the river] took [it all|everything]."

    {hero} looked at {his} {number} {holder} <while>. "<yes>," {he} <said>, "half of the {food} are yours."
    Were {number} {holder} enough for two? But {hero} had a {trait} heart. "We will share the {food}."

    They carried {friend}'s half to a <dry> place {place2=holes}.
    It took until <dayname> to bring {friend}'s half to a <dry> place {place2=holes}.

    ~

    Then it snowed for {number2=numbers} days. Water ran into the hole, and the {food} {place} [went \
        bad|froze to ice].
    One <weather> night a <big> [tree|rock] fell down, and {hero} could not get to the {food} {place}.

    {hero} was hungry. {He} [curled up|lay down] and tried to dream of <dish> and <soup> soup.
    {hero}'s [stomach|tummy] growled. "[If only|I wish] I had some <soup> soup," {he} <whispered>.

    But <suddenlow> somebody dug through the snow. It was {friend} with a <look> <holder>!
    Then {he} heard a <sound> sound. A [nose|paw] came through the snow, and there was {friend} the {kind2}!

    "You gave me {food}," <friendsaid>. "Now [come with me|it is my turn]. There are plenty {place2}."
    "I have {food} {place2}, [thanks to you|because you shared]," <friendsaid>. "Come!"

    So the {kind} and the {kind2} ate {food} with <dish> and [told stories|sang|slept] until spring.
    The {kind} and the {kind2} [spent|passed] the winter together, and it was [warm|cozy] and never \
        [dull|lonely].

    ~

    <nextfall>, {hero} and {friend} gathered {food} and {food2} together, [more than ever|in one big heap].
    In spring they dug a [tunnel|path] from one home to the other, and it is [still there|used every day].

moon:
    Every night {he} [looked at|watched] the moon. It was so [round|bright|<nice>], and {he} wished to \
        [hold|touch|have] it.
    [When it was dark|At night], {hero} [looked at|watched] the moon. "I want to [hold|touch|have] it," \
        {he} <said>.

    ~

    One <weather2> night {he} told {his} friend, a <mate>. "Then we must [fetch|catch] it," <friendsaid>.
    A <mate>, who lived next door, was awake, too. "[We could|Let us] [fetch|catch] it," <friendsaid>.

    They climbed a <big> {tree=trees}, [past|over] a <mood> <beast2>, but the moon was [still far away|no \
        closer].
    First they climbed a <big> {tree=trees}, but the moon was [just as far|even higher|behind a cloud].

    {friend} jumped and fell on [a <mood> <beast2>|{friend.his} nose]. "It is no use," <herosaid> and felt \
        like <sadlike>.
    Then the {kind2} stood on the {kind}'s shoulders, and both fell on [a <mood> <beast2>|the moss|their \
        noses].

    ~

    An old {guide=guides} had [watched|seen] everything. "[Do not chase|Never chase] the moon," it said \
        <softly>.
    "<well>, [you cannot catch|nobody can catch] the moon in a {tree}," said an old {guide=guides}.

    "[Fill|You must fill] a {thing=vessels} with water, and put it {place=moonspots}."
    "[Let it come|It will come] to you. Put a {thing=vessels} full of water {place=moonspots}, and wait."

    {hero} <ran> home and [came back with|brought] a {look=looks} {colour=colours} {thing}.
    So they filled {hero}'s {look=looks} {colour=colours} {thing} [to the top|with cold water|at the well].

    They put it {place} and waited <while>. And there, in the {thing}, lay the moon, [round|bright|white] \
        as <moonlike>!
    They sat down {place} and [waited|did not move]. "<oh>!" <whispered> {friend}. The moon was in the \
        {thing}!

    {hero} touched it. It broke into {number=numbers} pieces, [shook|danced] and became [whole|round] again.
    "It is [cold|wet|as smooth as <dish2>]," <herosaid> when {he} put one paw in, "and it \
        [tickles|wiggles|smells of <dish>]."

    ~

    "[May|Can] I keep it?" "Until morning," said the {guide}. "[Others need it, too|Then it must sleep]."
    "It is [mine|ours] now," <friendsaid>. "Until the sun comes," said the {guide} and <laughed>.

    They sang the moon a [quiet|little|<nice>] song, the {kind}, the {kind2} and the {guide}.
    The {kind}, the {kind2} and the {guide} ate <dish> and looked at it [until they yawned|until dawn|for \
        hours|until it was late].

    And when {hero} cannot sleep today, {he} puts the {colour} {thing} {place}, and the moon comes.
    Since then, on <weather2> nights, a {colour} {thing} full of moon stands {place}.

dry: dry, safe, warm, dark, good
suddenlow: suddenly, just then, late one night, one day
nextfall: The next fall, A year later, When summer was over
weather2: clear, quiet, warm, cold, still, bright, mild, starry
dish2: butter, cheese, honey, silk
beast2: cricket, lizard, worm, beetle, snail, frog, spider, goose, crow
moonlike: a coin, a cheese, a plate, a pearl, a pancake, a button, a drum
"""
