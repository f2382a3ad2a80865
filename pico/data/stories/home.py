"""Stories about children at home, as lines of the grammar explained in stories.py."""

GRAMMAR = r"""
lost:
    {helper=family} had [made|found|bought|painted|carved] {him} a {look=looks} {colour=colours} \
        {thing=toys}, and every <time>, {he} {thing.play}.
    Of all {his} toys, {hero} liked the {look=looks} {colour=colours} {thing=toys} from {helper=family} \
        best. {He} {thing.play} every [day|<time>].
    In {his} [room|closet|toy box|bed] [lay|was] a {look=looks} {colour=colours} {thing=toys}, a [birthday \
        present|gift] from {helper=family}. Every <time>, {he} {thing.play}.

    But <when>, the {thing} was [gone|not in its place|nowhere to be seen|missing|lost].
    Then it happened: {he} came home [from school|from the market|for lunch|from <outing>], and the \
        {thing} was [gone|missing].

    {He} looked {spot2=spots} and {spot3=spots}, but there was [nothing|only dust|only a sock|just a \
        spider|an old <holder>].
    {hero} looked {spot2=spots}. [Nothing|No luck|Only dust]. {He} looked {spot3=spots}. [Nothing \
        again|Just a spider].
    The {thing} was not {spot2=spots}. It was not {spot3=spots}[.|, and nobody had seen it.|, where {he} \
        found a <mood> cat.]

    <sad>

    ~

    "What is [wrong|the matter]?" <asked> {friend=children}, who [lived next door|was passing by|had come \
        to play].
    {friend=children} came [by|to the door|up the steps] with a <look> <holder>. "Why do you look so \
        <sorry>?"
    {friend=children} from next door [heard {him} sigh|saw {his} face]. "<oh>! What happened?"

    "I lost my {colour} {thing}," <herosaid>. "[When did you see it last|Did you hide it]?"
    "My {thing} is gone!" "[Did you hide it|Where did you have it last|The {colour} one|Your present from \
        {helper}]?"

    {hero} thought <while>. "[Wait|Oh]! I [hid|put|left] it {spot=spots} [to keep it safe|so that nobody \
        would take it]!"
    "[Yesterday|On <dayname>|This morning]," {hero} <whispered> <softly>, "I [hid|put] it {spot=spots}, \
        [because we had guests|because it was late|when I went to school]!"

    They <ran> to look {spot}. There it was, [safe and sound|as good as new|a little dusty|only a bit cold].
    {friend} looked {spot}. "I see something {colour}!" {friend.he} <shouted>.
    And [sure enough|really], {spot} they <saw> the {colour} {thing}.

    <joy>

    ~

    From that day on, {hero} kept the {thing} [next to {his} bed|on a chair|in a <look> \
        [box|basket|bag]|where {he} could see it].
    {hero} [hugged|patted] the {thing}. "I will never leave you {spot} again," {he} <said>.
    {helper} <laughed> and tied a <color> ribbon to the {colour} {thing}.
    "[Thank you|Now let us play|You saved the day]," <herosaid>, and {friend} <laughed>. They shared the \
        {thing} <until>.

outing: the park, the library, a walk, a swim, a visit

rain:
    On <dayname>, {helper=family} [wanted|had promised] to take {him} to the {place=outings}. {hero} \
        [hoped|was going] to {place.wish}.
    {hero} had [waited|longed] for [days|weeks|a month] to go to the {place=outings} with {helper=family} \
        and {place.wish}.
    "Tomorrow we will go to the {place=outings}," said {helper=family} <softly>. {hero} [wanted|longed] to \
        {place.wish}.

    But in the morning, <dark> clouds [filled|covered|hid] the sky, and rain [ran down|drummed on|tapped \
        on] the windows.
    But [when the day came|on that day], it [rained and rained|rained without end|poured|rained like never \
        before].
    But then the sky turned <dark> and it began to rain, [and it did not stop|harder and harder|on and \
        on]. <outside>

    "[I am sorry|What a pity|<oh>]," said {helper}. "The {place} [must|will have to] wait." <sad>
    "Not in this [rain|weather]," said {helper} <softly>. <sad>

    ~

    Then {helper} <laughed>. "If we cannot go to the {place}, the {place} [must|will] come to us!"
    {helper} thought <while>. "[Wait|I know|Well], we can make our own {place}!"

    {helper.He} [took|pulled] a {look=looks} {colour=colours} blanket [out of a drawer|from the bed|from a \
        chest|out of the closet] and [spread|laid] it on the floor. "This is {place.cloth}."
    They [fetched|found] a {look=looks} {colour=colours} blanket and put it [on the rug|down by the \
        sofa|on the floor]. "That is {place.cloth}," said {helper}.

    {place.build}

    <soon>, {friend=children} came over with [wet hair|dripping boots|a <look> <color> umbrella|a <look> \
        <holder>].
    The doorbell rang. It was {friend=children}, with [wet hair|dripping boots|a <look> <color> umbrella].

    "[Watch out|Be careful|Stop]," <herosaid>, "you are standing on {place.cloth}!" And they {place.play}.
    "[Come in|Take off your shoes]," <herosaid>, "but do not step on {place.cloth}!" <until2>, they \
        {place.play}.

    <joy>

    ~

    When the sun came back, {helper} put on a <color> hat. "To the {place}!" "[Yes|Good]," <herosaid>, \
        "but can we take the {colour} blanket along?"
    "How was the {place}?" asked {helper}. "<nicely>," <herosaid>, and {he} [folded|rolled] up \
        {place.cloth}.
    <supper> Then {hero} [folded|rolled] up {place.cloth} for [next time|the next rainy day].

nicely: Wonderful, The best of all, Wet, Full of surprises, Big
until2: All <time> long, Until dinner, For hours, Together
dark: dark, black, gray, thick, heavy, low

broken:
    On the [shelf|table|windowsill] [stood|was] a {look=looks} {colour=colours} {thing=fragile}. It \
        belonged to {helper=family}, who [loved it very much|was proud of it|had it from an old friend].
    {helper=family} had a {look=looks} {colour=colours} {thing=fragile}, [the only one of its kind|a gift \
        from a friend].

    <oneday>, {hero} and {friend=children} played [ball inside|pirates in the house|tag around the \
        table|knights]. <outside>
    {friend=children} came to visit. They [raced through the house|danced on the chairs|played ball|jumped \
        on the sofa].

    <suddenly> [there was|they heard] a <sound> crash. The {thing} lay on the floor in {number=numbers} \
        pieces.
    [Bump|Crash|Bang]! {hero} [hit|knocked over] the {thing}, and it broke into {number=numbers} pieces.
    Then {hero}'s [arm|elbow|foot] touched the {thing}. It [fell|tipped over] and broke into \
        {number=numbers} pieces.

    "<oh>," <whispered> {friend}. "[Quick, hide it|Nobody saw us|What now]!" So {hero} hid the pieces \
        {spot=hides}.
    {friend} [gasped|turned pale]. {hero} [looked around|listened|sighed] and hid the pieces {spot=hides}.

    At dinner, there was <soup> soup, but {he} [was not hungry|only stirred it|could not look at \
        {helper}]. <sad>
    But then {he} [could not sit still|could not eat any <dish>|kept looking at the empty place]. <sad>

    ~

    "Has anyone seen my {thing}?" asked {helper} [at bedtime|after a while|the next <time>|on <dayname>].
    The next <time>, {helper} looked [around|everywhere|under the table]. "Where is my {colour} {thing}?"

    {hero} [swallowed|looked at the floor|turned red]. "I broke it," {he} <whispered>. "The pieces are \
        {spot}."
    It would have been easy to blame [the wind|{friend}|a <mood> cat]. But {hero} said, "It was me. I hid \
        it {spot}."

    {helper} was quiet <while>. "A {thing} can be mended. [A lie cannot|<praise>]."
    {helper} [sighed|bent down] and [hugged|kissed] {him}. "<praise>," {helper.he} <whispered>.

    They took [some|the] glue and [mended|put together] the {number} pieces, [one by one|very slowly|until \
        late at night].
    All <time> they glued the {number} pieces. {friend} [helped|held the lamp|brought <dish>|told jokes].

    <joy>

    ~

    "[Every|Each] crack tells of a {trait} {kid} who told the truth," {helper} says [now|often|and \
        <laughs>].
    [Today|Now] the {thing} is back in its place. It is still {colour}, but it has [many|a few|{number}] \
        cracks.
    Whenever {hero} sees the {thing}, {he} remembers [how good the truth felt|that <dayname>|what was \
        hidden {spot}].

laughs: laughs, smiles, winks, nods

noise:
    One [dark|windy|cold|stormy] night, {friend=children} slept at {hero}'s house. They told stories about \
        <someone>.
    It was late, and {friend=children}, who was sleeping over, had just put out the <color> candle.
    {hero} and {friend=children} lay in bed and [counted stars|told jokes|ate <dish>|talked about school].

    "{sound=sounds}," came a <sound> sound from the {place=rooms}.
    <suddenly> they heard a sound from the {place=rooms}. "{sound=sounds}!"

    "What was that?" [whispered|asked] {friend}. "[Maybe it is|I think it is|It must be|I hope it is not] \
        a {monster=monsters}[.|!]"
    {friend} sat up in bed. "There is a {monster=monsters} in the {place}!" {friend.he} <whispered>.

    {hero} [shivered|pulled up the blanket|held {his} breath|turned pale]. {frame.sad}
    {hero}'s heart [beat like a drum|stood still|beat fast]. {frame.sad}

    ~

    "{sound}," it went again, [louder this time|a little closer]. "We must [go and look|be brave]," \
        <herosaid>.
    There it was again: "{sound}!" {friend} [looked at {hero}|held {hero}'s hand|hid under the pillow].

    {hero} took a {look=looks} {colour=colours} lamp, and they [tiptoed|crept|<ran>] to the {place}.
    They took a {look=looks} {colour=colours} lamp and a [broom|pillow|spoon|<color> <holder>] and \
        [tiptoed|crept] [down the hall|to the {place}].

    <softly2>, {hero} opened the door. In the light sat a <coat2> {animal=sound.makers}, [busy \
        with|eating] <dish>.
    The door creaked. They [lifted|held up] the {colour} lamp and saw a <coat2> {animal=sound.makers} in a \
        <holder>.

    "[Aha|Well|Hello|Oh], so you are our {monster}!" <joked> {friend}.
    "[That is|You are] a very small {monster}," <friendsaid>. The {animal} [yawned|sneezed|looked <sorry>].

    <joy>

    ~

    They gave it <dish> and a <color> towel to sleep on. "Who is making all this noise?" <asked> \
        {helper=family}.
    <suddenly> {helper=family} came [in|down the hall] with a <color> candle. "What are you doing in the \
        {place}?"

    "We caught a {monster}," <herosaid>. {helper} [looked|bent down] and <laughed>.
    "It is only a {animal}," <friendsaid>. "[And we thought|{hero} thought] it was a {monster}!"

    They [called|named] it {sound.called}. [Sometimes|On <weather> nights] it still goes: "{sound}."
    And whenever it goes "{sound}" now, {hero} only <laughs2>, and {friend} does, too.
    <later>, they let it go <outdoors>. But at night {hero} still hears it: "{sound}."

softly2: Slowly, Carefully, Very gently, With one hand
coat2: gray, brown, little, shaggy, tiny, round, dusty, wet
laughs2: laughs, smiles, giggles, yawns
joked: laughed, giggled, chuckled, cried, joked

seed:
    {helper=family} gave {him} a <seedlook> seed. "[Plant it|Put it in the ground], and then wait."
    {hero} found a <seedlook> seed <outdoors> <when>. "It wants to be planted," said {helper=family}.

    {hero} [planted|put] it in a {look=looks} {colour=colours} pot {place=potspots}.
    {He} filled a {look=looks} {colour=colours} pot with earth, pushed the seed in, and set it \
        {place=potspots}.

    Every [day|<time>] {he} gave it water. [A week|Two weeks|A month] went by, and nothing [happened|came \
        up].
    {He} watered it every [day|<time>]. [A week|A month] later, there was still only [earth|mud|one worm].

    {His} friend {friend=children} looked into the {colour} pot. "[Well|Hmm|Look|Oh], [nothing will grow \
        in there|it is empty]," <friendsaid>.
    "There is nothing in that {colour} pot," said {friend=children}, "[only mud|only a worm|and it smells \
        of <dish>]."

    <sad>

    ~

    "Seeds are [sleepy|slow|shy]," said {helper} <softly>. "[Good things take time|Wait a little longer]."
    {helper} felt the earth. "It is [only sleeping|not dead|waiting for <dayname>]," {helper.he} <said>.

    So {hero} [sang to the pot|told the pot stories|moved the pot into the sun] and waited <while>. \
        <outside>
    {hero} did not give up. {He} [kept the earth wet|turned the pot to the light] and [chased away|kept \
        off] a <mood> <beast>.

    Then, after [a warm rain|a night of rain|the first hot day], a green [tip|leaf|point] [looked|peeped] \
        out.
    And one <weather> <time>, there was a <small> green [tip|leaf|point], [smaller than a tooth|as thin as \
        a thread].

    It grew [and grew|day and night], and after {number=numbers} days, {place} stood a {colour3=blooms} \
        {thing=plants}.
    Soon it had {number=numbers} leaves. Then a bud opened: it was a {colour3=blooms} {thing=plants}, [big \
        as a plate|soft as silk]!

    <joy>

    ~

    "I was wrong," <friendsaid> [the next day|on <dayname>]. "What a <nice> {colour3} {thing}!"
    "Is that the same {colour} pot?" asked {friend} and smelled the {colour3} {thing} <while>.

    In the fall, {hero} gave {friend} {number2=few} seeds [in a <holder>|in a matchbox]. "[Be patient|They \
        are sleepy]."
    <supper> And {place}, the {colour3} {thing} [nodded|slept] in the dark.
    Now {friend} has a <color> pot, too, and every <time>, {hero} comes over and [sings|waits|tells it \
        jokes].

seedlook: tiny, round, brown, flat, black, striped

gift:
    In {number3=few} days it would be {helper=family}'s birthday, and {hero} wanted to buy a {look=looks} \
        {colour=colours} {thing=gifts}.
    For {helper=family}'s birthday, {hero} wanted something <nice>. In a shop {he} <saw> a {look=looks} \
        {colour=colours} {thing=gifts}.

    It cost {number2=prices} coins. But in {his} {holder=holders}, {he} had only {number=few}[.| and a \
        button.| and an old stamp.]
    "That makes {number2=prices} coins," said the [man|woman] in the shop. In {his} {holder=holders}, \
        {hero} had {number=few}.

    <sad>

    ~

    "<oh>, what are you counting?" asked {his} friend {friend=children}. "[Coins|I need {number2} coins], \
        and I have {number}."
    {hero} told {his} friend {friend=children} about the {colour} {thing}. "[And I have|All I have is] \
        {number} coins," {he} said.

    "We could {work=works}," <friendsaid>. "[I will help you|Two are faster than one]."
    {friend} thought <while>. "I know! [Let us {work=works}!|Why not {work=works}?]"

    So [every <time>|after school|all week] they {work.did}. <passer>
    They began [at once|the same day|on <dayname>]. They {work.did}. <passer>

    <atlast> {hero} had {number2} coins. <passing> But in the shop, the {thing} was gone!
    On <dayname>, there were {number2} coins in the {holder}. But the {colour} {thing} was no longer in \
        the shop!

    "[Are|Were] you looking for this?" [asked|called|said] the [baker's wife|shopkeeper] and held up the \
        {thing}.
    The old [man|woman] in the shop <laughed>. "<well>, I [kept|hid] the {thing} for you."

    <joy>

    ~

    On the birthday, {helper} opened the [paper|present|bag|box]. "A {colour} {thing}!" {helper.he} <said> \
        and {thing.use}.
    "How did you know?" <asked> {helper} on {helper.his} birthday and {thing.use}. <outside>

    {hero} <laughed>. "{friend} helped me {work}."
    "[What|You are such] a {trait} {kid}," <said> {helper}. "And {friend} [is a good friend|must come to \
        dinner]."
    <supper> Then {friend} got <dish>[, too.|, and {hero} got a hug.|, with <dish3>.]

passer:
    A <person> with a <look> <color> <load> gave them {number4=few} coins.
    <someone2> <saw> them and [helped|<laughed>|sang along|gave them <dish>].
    Their {work.hurt} [hurt|ached], but they [sang|<laughed>|did not stop|thought of the {thing}].

someone2:
    A <person>
    Their teacher
    {friend}'s mother
"""
