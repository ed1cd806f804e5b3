"""Word lists for the generator, written for this project from general knowledge."""

from __future__ import annotations

GIVEN = """
Aaron Abena Ada Adele Agnes Ahmed Aiko Aisha Akira Alan Albert Alejandra Alice Alma Amara Amina
Amir Ana Anders Andrei Angela Anita Anna Anton Antonio Arjun Arthur Asha Astrid Ayumi Beatriz
Benjamin Bianca Boris Brian Bruno Camila Carl Carmen Cecilia Chen Chidi Chloe Clara Daichi Daniel
Daria David Deepa Diego Dmitri Dora Edith Eduardo Elena Elif Emeka Emil Emma Eric Esther Ethan Eva
Fatima Felix Fiona Florence Frank Gabriel George Giulia Grace Greta Gustav Haruto Hassan Helen
Henrik Hiroshi Hugo Ibrahim Ines Ingrid Irene Isaac Isabel Ivan Jack Jacob Jade James Jamila Jan
Jing Joanna Joao Jonas Jorge Joseph Julia Jun Kai Karim Katarina Kenji Khalid Kofi Kwame Lakshmi
Lars Laura Leila Leo Liang Linda Linh Lorenzo Louise Lucas Lucia Luis Magnus Maja Mara Marcus Maria
Mariko Mark Marta Martin Mateo Maya Mei Michael Miguel Mina Ming Miriam Mohammed Monica Nadia Naomi
Natalia Neha Nia Nikolai Nina Nora Oleg Olga Omar Oscar Pablo Paula Pedro Peter Petra Philip Priya
Quentin Rachel Rafael Rahul Ravi Rebecca Ricardo Rina Robert Rosa Ruth Sakura Salma Samuel Sandra
Sanjay Sara Satoshi Sean Selma Sergei Silvia Simon Sofia Soren Stella Sven Takumi Tamara Tariq
Teresa Thomas Tina Tomas Uma Ursula Valentina Vera Victor Vikram Wanda Wei Xavier Xin Yan Yara
Yasmin Yuki Yusuf Zara Zhen Zoe
""".split()

FAMILY = """
Abe Adams Adeyemi Ahmadi Ali Allen Almeida Alvarez Andersen Aoki Baker Banerjee Barros Bauer Becker
Bell Bennett Berg Bianchi Boateng Bondarenko Brandt Brooks Brown Campbell Carter Castro Cha Chan
Chatterjee Chavez Cho Choi Cohen Cooper Costa Cruz Dang Das Davies Diaz Dubois Duarte Edwards
Eriksson Evans Fernandez Ferrari Fischer Flores Foster Fujita Garcia Gomez Gonzalez Gray Green
Gupta Haddad Hall Hansen Haque Harris Hayashi Hernandez Hoffmann Hughes Hussain Ibarra Ikeda Inoue
Ito Ivanova Jackson Jansen Jensen Johansson Johnson Jones Joshi Kaplan Kapoor Kaya Keller Khan Kim
King Kline Kobayashi Kowalski Kumar Larsen Laurent Lee Lewis Li Lin Lindgren Liu Lopez Mahmoud
Malik Martinez Mbeki Mendes Menon Meyer Miller Mishra Mitchell Moore Morales Moreau Moreno Mori
Morris Mueller Murphy Nakamura Nair Navarro Nelson Nguyen Nielsen Novak Nowak Nunez Obi Okafor
Okamoto Oliveira Olsen Ono Ortiz Osei Ota Owens Ozturk Park Parker Patel Pereira Perez Petrov Pham
Popescu Powell Qureshi Rahman Ramos Rao Reddy Reed Reyes Richter Rivera Roberts Robinson Rossi Ruiz
Russo Saito Salazar Sanchez Santos Schmidt Scott Sen Shah Shimizu Silva Singh Smith Sokolov Song
Sousa Stein Suzuki Svensson Takeda Tan Tanaka Taylor Thompson Torres Tran Ueda Usman Vargas Vasquez
Verma Vogel Volkov Wagner Walker Wang Ward Watanabe Weber Williams Wong Wood Wright Wu Yadav Yamada
Yang Yilmaz Young Zhang Zhao Zhou Zimmermann
""".split()

SYLLABLES = """
ba be bi bo bra bri ca cha che ci co cra da de di do dra du ei el en er fa fe fi fla fo ga ge gi go
gra ha he hi ho hu ia in ja je ji jo ka ke ki ko kra la le li lo lu ma me mi mo mu na ne ni no nu
ny o pa pe phi po pra qua ra re ri ro ru sa se sha shi sko so sta ste stra ta te tha ti to tri tu u
va ve vi vo wa we wi wo xa ya ye yo yu za ze zi zo
""".split()

ENDINGS = """
n r s l th nd rt ck sh ng m x t d son man ton ley ford well berg sen ez ova ski wood er an us is ah
ie y ia e a o
""".split()

PLACES = """
Aberdeen Accra Adelaide Amsterdam Ankara Athens Auckland Austin Bangkok Barcelona Bath Beirut
Belgrade Bergen Berlin Bogota Bologna Bonn Boston Bristol Brussels Bucharest Budapest Cairo Calgary
Cape Town Cardiff Chicago Copenhagen Cork Dakar Dallas Delft Denver Dhaka Dublin Durham Edinburgh
Exeter Florence Geneva Ghent Glasgow Granada Graz Hamburg Hanoi Havana Helsinki Houston Istanbul
Jakarta Kampala Kiel Kyoto Lagos Lahore Leeds Leiden Lima Lisbon London Lund Lyon Madrid Malmo
Manila Melbourne Miami Milan Montreal Moscow Mumbai Munich Nairobi Naples Nagoya Nantes Osaka Oslo
Ottawa Oxford Padua Paris Perth Porto Prague Quito Riga Rome Rotterdam Salamanca Santiago Seoul
Seville Shanghai Singapore Sofia Stockholm Sydney Taipei Tallinn Tokyo Toronto Trento Turin Uppsala
Utrecht Valencia Vancouver Vienna Vilnius Warsaw Yale York Zagreb Zurich California Texas Ohio
Oregon Florida Virginia Kansas Michigan Arizona Colorado Georgia Indiana
""".split()

FIELDS = """
agriculture animation anthropology archaeology architecture art astronomy baking ballet basketball
biology birdwatching blogging boxing business calligraphy camping cars ceramics chemistry chess
cinema coding comics conservation cooking crafts cricket culture cycling dance data science debate
design diplomacy drama drawing ecology economics education electronics engineering entrepreneurship
environment fashion film finance fishing fitness folklore food football games gardening genetics
geology graphic design guitar health hiking history human rights journalism kayaking knitting
languages law linguistics literature logic machine learning magic management marketing mathematics
medicine meditation mountaineering museums music mythology nature neuroscience nutrition opera
painting philosophy photography physics piano poetry politics pottery programming psychology public
health puzzles reading robotics rowing running sailing sculpture singing skating skiing sociology
software space sports startups statistics surfing sustainability swimming technology tennis theatre
tourism travel typography urban planning video editing violin volunteering walking weaving wildlife
wine woodwork world history writing yoga zoology
""".replace("\n", " ").split()

ADJECTIVES = """
active ambitious ancient artistic avid bold brave bright calm careful cheerful clever committed
compassionate creative curious dedicated deep determined diligent disciplined driven dynamic eager
earnest emerging energetic engaged enthusiastic experienced fearless focused friendly future gentle
gifted global hardworking honest humble imaginative innovative inquisitive inspired keen lifelong
lively local loyal mindful modern motivated natural open organised outgoing passionate patient
playful practical proud quiet rational reliable resourceful rural sharp sincere skilled social
sociable strategic strong talented tireless thoughtful trained versatile vibrant visual warm wild
young
""".split()

ROLES = """
advocate analyst apprentice artist athlete author beginner builder challenger champion coach
collector designer developer dreamer editor engineer enthusiast explorer fan founder graduate guide
hacker learner leader lover maker mentor musician newcomer observer organiser painter photographer
planner player poet practitioner reader researcher runner scholar scientist seeker speaker
storyteller student teacher thinker traveller tutor volunteer winner worker writer
""".split()

VERBS = """
admire analyse appreciate bring build capture celebrate change collect combine connect create
cultivate defend deliver design develop discover document empower encourage enjoy examine
experience explore express find follow foster grow help highlight honour imagine improve inspire
invent investigate join lead learn love make map master merge mix motivate observe organise play
practise preserve promote protect pursue raise record reflect reveal seek serve shape share solve
spread strengthen study support teach tell transform understand unite use value visit watch
""".split()

NOUNS = """
adventure animals answers audience awareness balance beauty books bridges care cause challenges
change children cities communities computers connections courage crafts creativity cuisine cultures
detail dialogue discoveries diversity dreams earth emotions energy equality experiences family
farms forests freedom friends future goals growth harmony health heritage home hope ideas identity
images impact industry innovation insight island journeys justice knowledge landscapes life light
machines markets meaning memory minds moments morning mountains mysteries narratives oceans passion
patterns peace people perspective places planet plants power problems progress projects purpose
questions races rivers rhythm schools skills society solutions songs sounds spaces spirit stars
stories strength styles success systems team teams thoughts time tools tradition truth universe
values vision voices water wellness wonders words work world youth
""".split()

THINGS = """
Kettle Lamp Chair Table Basket Clock Mirror Blanket Pillow Mug Bowl Plate Teapot Candle Vase Rug
Shelf Notebook Pencil Backpack Umbrella Scarf Jacket Gloves Hat Boots Sandals Wallet Watch Radio
Speaker Keyboard Camera Tripod Bicycle Helmet Tent Lantern Rope Hammer Drill Saw Shovel Bucket
Ladder Brush Easel Guitar Drum Flute Puzzle Kite Ball Racket Skates Printer Router Charger Cable
Monitor Tablet Phone Toaster Blender Pan Knife Spoon Tray Towel Curtain Stool Bench Desk
""".split()

KINDS = """
Copper Silver Golden Wooden Glass Leather Woollen Cotton Velvet Plastic Steel Iron Bamboo Marble
Paper Ceramic Red Blue Green Yellow Black White Grey Purple Orange Small Large Tiny Folding Round
Square Travel Garden Winter Summer Desert Ocean Mountain Royal Classic Modern Vintage Electric
Digital Compact Heavy Light Smart Silent Striped Painted
""".split()

COLOURS = """
red blue green yellow black white grey purple orange brown pink silver golden crimson teal ivory
""".split()
ANIMALS = """
fox owl otter heron badger falcon tortoise rabbit hedgehog donkey goat swan raven turtle beaver
lynx horse parrot goose pigeon squirrel salmon camel monkey tiger bear wolf deer cat dog
""".split()
CROPS = """
barley wheat rye oats maize rice apples pears plums cherries olives grapes lemons figs tomatoes
onions carrots cabbages potatoes beans lentils pumpkins almonds walnuts honey tea coffee cotton
hops mint
""".split()
PAPERS = """
Letter Report Diary Notice Memo Record Leaflet Chronicle Ledger Bulletin Note Survey Journal
Register Guide Journal
""".split()
SITES = """
Harbour Mill Castle Bridge Abbey Tower Market Village Lighthouse Station Farm Garden Library Chapel
Inn Quarry Valley Island School Forge
""".split()
