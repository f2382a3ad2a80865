"""Stories about children outdoors, as lines of the grammar explained in stories.py."""

GRAMMAR = r"""
newcomer:
    <oneday>, a <look2> truck stopped in front of the {colour4=colours} house [next door|across the \
        street]. A <newkid> [climbed|jumped] out.
    [For a long time|All winter], the {colour4=colours} house next door had been empty. Now a <newkid> \
        [sat|stood] <seat>.

    {friend.He} [said nothing|was very quiet] and held a {colour=colours} toy {thing=cuddly} with [one \
        eye|a torn ear].
    Under {friend.his} arm {friend.he} [carried|held] a {look2=looks} {colour=colours} toy {thing=cuddly}.

    "Hello!" [called|shouted] {hero}. But {friend} [hid behind a tree|hid behind the truck|ran away|ran \
        into the house]. <sad>
    {hero} [waved|smiled] and said hello. {friend} [looked at the ground|hid behind the {thing}]. <sad>

    ~

    "Everything is new for {friend}," said {helper=family}. "[Give {friend.him} time|Be patient|Try again]."
    "Some people are [shy|slow to talk]," said {helper=family}. "[It is hard to be new|I was like that \
        once|That will pass]."

    So {hero} fetched {his} own toy, a {look=looks} {colour3=colours} {thing2=cuddly}, and sat down <seat>.
    The next <time>, {hero} sat <seat> with a {look=looks} {colour3=colours} toy {thing2=cuddly}. <outside2>

    "My {thing2} is [looking for a friend|all alone]," {he} said [loudly|to the sky|to nobody|to a <mood> \
        <beast>].
    "This {thing2} [wants|would like] to meet someone," {he} said [loudly|to the wind|to nobody|to a \
        <mood> <beast>].

    Nothing happened <while>. Then a <sound> voice said, "My {thing} would like that, too."
    [Leaves moved|The gate creaked], and there stood {friend}. "My {thing} [is lonely|knows nobody here]."
    "My {thing} [would like that, too|wants to meet the {thing2}]," came a <sound> voice from behind [a \
        tree|the fence].

    They built a [cave|castle|house] for the {thing} and the {thing2} out of [leaves|stones|branches|boxes].
    They gave the {thing} and the {thing2} [tea|soup] made of [mud|rain] and [grass|petals|sand].

    <joy>

    ~

    After that, {hero} and {friend} met every [day|<time>], and the {thing} [sat|slept] beside the {thing2}.
    And when another new child came, {friend} [went over|said hello] first, with the {colour} {thing}.
    "Only a {trait} {kid} waits like that," {friend} said [one day|much later|on <dayname>].
    <supper> Then {friend} went back to the {colour4} house, [singing|skipping|with the {thing} under one \
        arm].

outside2:
    A <person> with a <look> <color> <load> [went by|hurried past|stopped and <went> on].
    Nobody came <while>.

newkid:
    girl [named|called] {friend=girls}
    boy [named|called] {friend=boys}

look2: long, big, dusty, little, noisy, loud, funny

turns:
    {helper=family} had [built|painted|mended] a {look=looks} {colour=colours} {thing=rides}. "It is for \
        you and {friend=children}," {helper.he} told {hero}.
    Behind {helper=family}'s house [stood|was] a {look=looks} {colour=colours} {thing=rides}. {hero} and \
        {friend=children} <saw> it at the same moment.
    For [weeks|months], {helper=family} had worked on a {look=looks} {colour=colours} {thing=rides}. Now \
        it was ready for {hero} and {friend=children}.

    "Me first!" <shouted> {hero}. "No, me!" They pulled [this way and that|harder and harder|and pushed].
    "I want to try it," <herosaid>. "So do I," <friendsaid> and [pulled|pushed|sat down on it].
    {hero} [took hold of|held on to] the {thing}, but {friend} [did not let go|held on, too]. "Mine!" they \
        both <said>.

    {thing.mishap} <sad>

    ~

    {helper} came with a <look> <holder>. "I can mend it," {helper.he} <said>, "but [you two need a rule|I \
        cannot mend friends]."
    "<well>," <said> {helper}, "a {thing} is easy to mend. A friend is not."
    {helper} looked at the {thing} <while>. "[What a mess|<oh>]! I see that you need a rule."

    {helper.He} <laughed>. "[One rides, and one counts|When I was small, one child counted] to \
        {number=counts}. Then you [change|swap]."
    "[Do you know what|Here is what] we did when I was a child? We counted to {number=counts} and then \
        [changed|swapped]."

    {hero} [thought about it|nodded|turned red]. "You go first," {he} <whispered> <softly>.
    "<yes>," <friendsaid> <softly>. "You [go|can go] first, {hero}."
    They looked at each other <while>. "[I am sorry|That was silly]," they both <whispered>.

    {friend} {thing.ride} [around the house|down the lane|like the wind], and {hero} counted to {number}.
    [Before noon|After lunch], {hero} {thing.ride} [around the house|down the lane|like the wind], and \
        {friend} counted.

    They counted [backward|in a whisper|with a mouth full of <dish>], and <someone> [watched|listened].
    Once {hero} counted [far past {number}|all the way to a hundred]. <outside2>

    <joy>

    ~

    [On <dayname>|That <time>|<later>], they [painted|wrote] both their names on the {colour} {thing}.
    <supper> Then they counted to {number} and [said good night|<went> to the {thing} again].
    And if they [want the same thing|quarrel] again, {helper} [just says|whispers], "Count to {number}."

later: Much later, The next day, A week later

promise:
    "I have to go [to town|to the market|to the doctor]," said {helper=family}. "Can you {chore=chores} \
        <today>?"
    {helper=family} put on a {look=looks} <color> coat. "Will you {chore=chores} [for me|<today>]?"
    "Somebody has to {chore=chores} <today>," said {helper=family}, "and I must go [to town|to the market]."

    "<yes>, I promise," <herosaid>.
    "I will do it," <herosaid> <softly>. "[I promise|That is a promise]."

    But soon {friend=children} came [running|by]. "[Come|Let us go] to the {place=funs}! {place.why}!"
    But then {friend=children} [knocked|whistled] at the window. "[Come|Let us go] to the {place=funs}! \
        {place.why}!"

    {hero} [forgot everything else|did not think twice]. <passing> At the {place}, they {place.fun}.
    Off they <ran>. <passing> At the {place}, they {place.fun} <until>.

    ~

    <suddenly> {chore.clue}. "<oh>! I promised to {chore}!"
    <soon>, {chore.clue}. {hero} [stood still|turned pale]. "I have to {chore}!"

    "[Do it tomorrow|Stay a little longer|Not now]," said {friend} <softly>. {frame.sad}
    {friend} shook {friend.his} head. "[Nobody will know|It is so <nice> here|We just got here]." \
        {frame.sad}

    But a promise is a promise, and {hero} <ran> home [like the wind|without stopping|past <someone>].
    "I [gave my word|promised {helper}]," <herosaid>, and {he} <ran> [home|up the road|down the road].

    [Out of breath|At home], {he} {chore.did}. {friend} [helped|came and helped|brought <dish>].
    "<yes>, I will help you!" <said> {friend}. {hero} {chore.did}.

    ~

    When {helper} came [home|back] [with a <look> <color> <load>|at dusk|with <dish>], {chore.end}.
    The sun was [low|red|almost gone] when {helper} came [up the path|with a <look> <holder>]. By then, \
        {chore.end}.

    "I almost forgot," <herosaid>. "[I was|We were] at the {place}." "But you [remembered|came back]," \
        <said> {helper}.
    "[Thank you|You kept your promise]," <said> {helper}. "[How was|And did you see] the {place}?" {hero} \
        [turned red|<laughed>].
    "When a {trait} {kid} promises to {chore}, it gets done," <said> {helper}.

    <joy>

today: today, this afternoon, before dark, before I come back

picnic:
    {hero} and {friend=children} [had|went on] a picnic {place=meadows} on a <fine> <dayname>.
    {hero} and {friend=children} [often|sometimes] had a picnic {place=meadows}. But on a <fine> \
        <dayname>, something odd happened.
    It was a <fine> <dayname>, and {hero} [wanted|was going] to have a picnic {place=meadows} with \
        {friend=children}.

    {helper=family} helped them pack {food2=foods}, {food3=foods} and, best of all, {food=foods}.
    In the basket were {food2=foods}, {food3=foods} and some {food=foods} from {helper=family}.
    {helper=family} gave them {food2=foods}, {food3=foods} and, as a treat, {food=foods}.

    They spread out a {look=looks} {colour=colours} blanket and ran off to [pick flowers|play tag|roll \
        down the slope|chase butterflies].
    First they laid out a {look=looks} {colour=colours} blanket. Then they [picked flowers|played hide and \
        seek|climbed a tree|looked for snails|chased a <mood> <beast>].

    When they came back, the {food} {food.was} gone!
    <soon>, {friend} opened the basket. "{food.Is} the {food} not in here?"
    But when they sat down to eat, there {food.was} no {food} [anywhere|at all|left].

    "Did you eat {food.it}?" asked {friend}. "[No.|Of course not.|Me?]" <sad>
    They looked [under the blanket|in their bags|<outdoors>]. There {food.was} no {food}. <sad>

    ~

    Then they <saw> [tiny|muddy|strange] [tracks|footprints] that led [through|around] [a hedge|a <color> \
        gate].
    {friend} <saw> a trail of crumbs. It led [past|right to] <someone> [and on|and farther].

    At the end of the trail sat a <coat> {animal=food.thieves}, [right beside|in front of] {animal.den}.
    And there sat a <coat> {animal=food.thieves}, [next to|in front of] {animal.den}.

    It was [feeding|giving] the {food} to its {number=numbers} babies!
    Around it were {number=numbers} <mood> {animal.babies}, [eating|sharing] the {food}.

    "<well>, it has to feed its {animal.babies}," <whispered> {hero} <softly>.
    "So you are the thief," <friendsaid>, but {friend.he} <laughed>. "[You have|That is] a big family."

    They [fetched|went and got] the {food2} and left [some|half] [on a leaf|on a stone|<outdoors>].
    They shared the {food2}, too, [half and half|piece by piece]. The {animal} {animal.call}.

    <joy>

    ~

    "<nextime> I will pack more {food}," {helper} <said> [when they told the story|and <laughed>].
    "Where {food.was} the {food}?" asked {helper}. "We had {number} guests," <herosaid>, "[and their \
        mother|all <mood>]."
    <supper> There {food.was} even some {food} left for the {animal}.

    Since then, they always take extra {food} {place}, [for|enough for] a {animal} and {number} babies.
    And whenever they spread the {colour} blanket {place}, the {animal} [comes|is there] [to say \
        hello|before them].

nextime: Next time, From now on, Tomorrow
coat: gray, brown, sleek, shaggy, big, round, dusty, little

patient:
    <oneday>, there was a <coat> {animal=patients} <outdoors>. Its {animal.part} was hurt.
    On the way [home|to school|to the park|to the library], {hero} heard a <sound> cry. <outdoors2> sat a \
        <coat> {animal=patients}. Its {animal.part} was hurt.

    "[Do not be afraid|<oh>]," [said {hero}|{hero} said] and [wrapped|rolled] it in a {look=looks} \
        {colour=colours} towel.
    {He} took it home in a {look=looks} {colour=colours} towel, [as carefully as an egg|step by step|past \
        <someone>].

    "[Poor thing|<oh>]," <said> {helper=family}. "It needs some {animal.eats} and a warm \
        [bed|box|nest|corner|blanket]."
    {helper=family} tied up the {animal.part} <softly>. "Now give it {animal.eats}."

    They put the {animal} in a <holder2> {place=potspots}, and {hero} named it {name=petnames}.
    {hero} put the {colour} towel {place=potspots}. "[I will call you|Your name is] {name=petnames}," {he} \
        <whispered>.

    {friend=children} from next door came [every day|after school|with a <holder>] and brought \
        {animal.eats}.
    {His} friend {friend=children} [helped|came to help] and told it about <someone>.

    But on the [second|third|fourth] day, {name} [lay very still|kept both eyes shut|shivered]. <sad>
    {name} did not [eat|move|touch the {animal.eats}] [on <dayname>|that day]. <sad>

    ~

    All night, {he} kept {name} warm in the {colour} towel and [sang <softly>|did not sleep].
    {hero} stayed {place} all night and [sang <softly>|held the {colour} towel].

    In the morning, {name} [opened one eye|lifted its head|took some {animal.eats}].
    When the sun [rose|came up], there was a <sound> [noise|sound]. {name} was eating!

    <joy>

    ~

    After {number=numbers} days, the {animal.part} was [as good as new|healed]. "It is time to say \
        goodbye," said {helper}.
    In {number=numbers} days, {name} grew [strong|round] again. "It wants to go [home|outside]," \
        <friendsaid>.

    "I [love|will miss] {name}," <herosaid> <softly>, but {he} opened {his} hands. The {animal} \
        {animal.leave}.
    They took it outside. {name} looked [back|at {hero}|up and down] <while>, and then it {animal.leave}.

    On <dayname>, there was {animal.sound}. It was {name}, [round|fat] and <glad>.
    And some mornings, there are <small> footprints {place}. Then {hero} knows: {name} was there.
    And when there is {animal.sound}, {hero} [leaves|puts] {animal.eats} {place}.

outdoors2: Under a bush, In the ditch, Behind a tree, Next to the fence, In the grass
holder2: box, basket, crate, bowl, hat

stuck:
    {helper=family} bought {him} a {look=looks} {colour=colours} {thing=flyers} <when>.
    {hero} had a {look=looks} {colour=colours} {thing=flyers}, a present from {helper=family}.
    With {helper=family}'s help, {hero} won a {look=looks} {colour=colours} {thing=flyers} [at the fair|in \
        a race].

    {He} and {friend=children} took it [to the park|to the school yard|to the field|down the road] to try \
        it out.
    "[May|Can] I try it?" asked {friend=children}. <passing>

    But the wind [caught|took] the {thing} and [carried|threw] it into a <big> {tree=trees}.
    The {thing} [flew|rose] high and higher and got stuck in a <big> {tree=trees}.

    {hero} [shook|kicked|pulled at] the {tree}, [but it did not help|but only leaves fell down|again and \
        again].
    {hero} [jumped|tried to climb up], but the {thing} was [much too high|out of reach].

    "I have an idea," <friendsaid> and threw {friend.his} {thing2=things} at it. [Now|Then] that was \
        stuck, too.
    {friend} threw {friend.his} {thing2=things} [up|at the branch]. It [did not come down|stayed up there].

    So {hero} threw {his} {thing3=things}. [It got stuck, too|It stayed up there].
    "[Let me try|My turn]," <herosaid> and threw {his} {thing3=things}. [It landed on a branch|Up it \
        went], and there it stayed.

    Now the {thing}, the {thing2} and the {thing3} were all up in the {tree}. <sad>
    "First the {thing}, then the {thing2}, and now the {thing3}," <friendsaid>. <sad>

    ~

    {helper} came [by|past]. "<well>, we need [a bird|a giraffe|some luck|a ladder]." So they waited \
        <while>.
    <someone2> came by and tried [a ladder|a long stick|a broom], but it was [too short|no use].

    Then a <coat> {animal=climbers} [sniffed at|looked at|pushed] the {colour} {thing}.
    Up in the {tree}, a <coat> {animal=climbers} woke up. It did not like [the mess|all those things].

    <bump>! Down came the {thing2}. <bump>! The {thing3}. And then <bump2>, the {colour} {thing}.
    Then the {thing2} hit the {thing3}, and [all of it|everything] fell on [the grass|{friend}|<someone>].

    <joy>

    ~

    "Thank you!" <said> {friend}. {hero} left <dish> for the {animal} under the {tree}.
    {friend} carried the {thing2}, {hero} carried the {thing3}, and {helper} carried the {thing}.
    <supper> And {friend} [dreamed|told everyone] about a {animal} with a {colour} {thing}.

bump: Thump, Plop, Bump, Bang
bump2: at last, softly, last of all, with a swish
"""
