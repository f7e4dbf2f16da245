"""Word lists that fill the templates of `prompts`."""

from __future__ import annotations


def _split(text: str) -> list[str]:
    return [item for part in text.split(";") if (item := " ".join(part.split()))]


SUBJECTS = _split("""
    photosynthesis; the water cycle; plate tectonics; black holes; the moon's phases; vaccines; antibiotics; DNA;
    evolution; the immune system; the human heart; how the brain stores memories; sleep; volcanoes; earthquakes;
    hurricanes; rainbows; lightning; tides; glaciers; coral reefs; rainforests; deserts; the ozone layer;
    recycling; composting; solar panels; wind turbines; nuclear fission; electric cars; hydrogen fuel; batteries;
    magnets; electric motors; transistors; lasers; the internet; Wi-Fi; GPS; satellites; search engines;
    encryption; passwords; machine learning; neural networks; databases; operating systems; compilers; cloud
    computing; spreadsheets; 3D printing; robots; drones; microscopes; telescopes; thermometers; the periodic
    table; acids and bases; chemical bonds; gravity; friction; inertia; energy; entropy; sound waves; the Doppler
    effect; prisms; atoms; isotopes; the Roman Empire; ancient Egypt; the Silk Road; the Renaissance; the printing
    press; the French Revolution; the Industrial Revolution; the Cold War; the space race; the Magna Carta; the
    Olympic Games; the Vikings; the Black Death; the Aztecs; feudalism; democracy; constitutions; elections; the
    United Nations; inflation; interest rates; taxes; the stock market; bonds; insurance; mortgages; budgets;
    supply and demand; globalization; trade tariffs; unemployment; start-up companies; marketing; customer
    service; negotiation; leadership; teamwork; time management; public libraries; museums; jazz music; classical
    music; opera; hip-hop; ballet; photography; oil painting; sculpture; architecture; poetry; Shakespeare's
    plays; detective novels; science fiction; fairy tales; myths; stand-up comedy; documentary films; animation;
    video games; board games; chess; football; basketball; tennis; swimming; cycling; running; yoga; meditation;
    hiking; camping; gardening; beekeeping; baking bread; making cheese; brewing coffee; tea ceremonies;
    chocolate; olive oil; sushi; pasta; curry; vegetarian food; street food; food preservation; nutrition labels;
    vitamins; protein; sugar; dehydration; exercise; stress; anxiety; friendship; parenting; pets; dog training;
    cats; horses; whales; elephants; penguins; bees; ants; spiders; owls; sharks; octopuses; dinosaurs; mushrooms;
    oak trees; roses; bamboo; cactus plants; rivers; oceans; mountains; islands; maps; calendars; clocks; bridges;
    tunnels; airports; trains; sailing; submarines; bicycles; cars; traffic; city parks; urban planning; earth's
    atmosphere; seasons; climate change; weather forecasts; languages; grammar; punctuation; handwriting;
    translation; public speaking; job interviews; résumés; remote work; email etiquette; note-taking; exams;
    homework; libraries of code; unit testing; version control; web browsers; spam; privacy; social media;
    advertising; journalism; fake news; copyright; patents; human rights; courts of law; juries; police work;
    firefighting; nursing; first aid; surgery; dentistry; eyesight; hearing; the skeleton; muscles; digestion;
    blood types; allergies; viruses
""")

PLACES = _split("""
    Paris; Kyoto; Cairo; Lisbon; Nairobi; Buenos Aires; Toronto; Sydney; Reykjavik; Istanbul; Mumbai; Seoul;
    Mexico City; Marrakesh; Prague; Edinburgh; Cape Town; Lima; Hanoi; Vancouver; Naples; Athens; New Orleans;
    Dublin; Copenhagen; the Alps; the Sahara; Patagonia; the Scottish Highlands; Iceland; New Zealand; Costa Rica;
    Norway; Vietnam; Peru; Morocco; Greece; Portugal; Japan; Kenya; Canada; Brazil; India; Chile; Finland
""")

ROLES = _split("""
    a pirate captain; a wise old gardener; a medieval knight; a detective in 1920s Chicago; a friendly robot; a
    ship's cook; a museum guide; a kindergarten teacher; a retired astronaut; a stern librarian; a travel agent; a
    sports commentator; a weather presenter; a personal trainer; a doctor in a small village; a chef in a busy
    restaurant; a startup founder; a grandmother telling stories; a talking cat; a time traveller from the year
    3000; a dragon who likes books; a lighthouse keeper; a news reporter; an archaeologist; a job interviewer; a
    debate coach; a history professor; a mountain guide; a tailor; a blacksmith; a fortune teller; an alien
    visiting Earth; a train conductor; a beekeeper; a software engineer; a judge; a mayor; a street musician; a
    magician; a deep-sea diver; a film critic; a poet
""")

PEOPLE = _split("""
    a child of eight; a beginner; a teenager; a busy manager; a new employee; a tourist; a university student; my
    parents; someone who has never heard of it; an expert in another field; a small business owner; a school
    class; a friend
""")

OBJECTS = _split("""
    a lost key; an old clock; a red umbrella; a broken violin; a letter without a name; a paper boat; a silver
    coin; a wooden box; a forgotten photograph; a blue bicycle; a cracked mirror; a lantern; a map; a train
    ticket; a white feather; a music box; a garden gate; a worn pair of boots; a telescope; a notebook; a teacup;
    a snow globe; a compass; a kite; a rusty sword; a stone bridge; a bakery; a night market; an empty theatre; a
    lighthouse; a storm; a small island
""")

MOODS = _split("""
    funny; sad; mysterious; hopeful; formal; friendly; dramatic; calm; ironic; romantic; scary; cheerful; serious;
    playful
""")

MAIL = _split("""
    asking for a day off; apologizing for a late delivery; inviting colleagues to a farewell party; declining a
    meeting; thanking a teacher; asking a landlord to repair the heating; applying for a summer job; cancelling a
    subscription; requesting a refund for a damaged parcel; asking for a letter of recommendation; reminding a
    client of an unpaid bill; announcing a new office; congratulating a friend on a new job; asking a neighbour to
    keep the noise down; following up after a job interview; proposing a new project; reporting a lost suitcase;
    booking a group dinner; introducing a new team member; asking for a discount; resigning from a position;
    planning a family reunion
""")

PROBLEMS = _split("""
    I can't fall asleep at night; my houseplants keep dying; my laptop is very slow; my dog barks at every
    visitor; I have too many emails; I want to save money on groceries; I have to give a speech next week; my
    child refuses vegetables; I want to learn to play the guitar; I can't decide between two job offers; I often
    forget names; my bread never rises; I want to run my first ten kilometres; my kitchen is too small; I feel
    lonely in a new city; I procrastinate a lot; I want to read more books; my neighbours are loud; I have an exam
    in three days; I want to learn a new language; my bicycle chain keeps falling off; I spend too much time on my
    phone; I want to start a vegetable garden; my team misses its deadlines; I want to eat less sugar; I argue
    with my brother; my car makes a strange noise; I am nervous before interviews; I want to change careers at
    forty; my website gets no visitors
""")

TASKS = _split("""
    reverses a string; checks whether a word is a palindrome; counts the vowels in a text; finds the largest
    number in a list; removes duplicates from a list; sorts a list of numbers without a library; merges two sorted
    lists; computes the factorial of a number; computes the n-th Fibonacci number; checks whether a number is
    prime; lists all primes below n; finds the greatest common divisor of two numbers; converts Celsius to
    Fahrenheit; converts a decimal number to binary; counts how often each word occurs in a text; reads a CSV file
    and prints the sum of a column; implements binary search; implements a stack; implements a queue with two
    stacks; reverses a linked list; finds the second largest element; rotates a list by k places; transposes a
    matrix; multiplies two matrices; checks balanced parentheses; finds two numbers in a list that add up to a
    target; computes the average of a list; finds the longest word in a sentence; validates an email address;
    generates a random password; flattens a nested list; traverses a binary tree in order; finds the depth of a
    binary tree; finds the shortest path in a grid; implements bubble sort; implements quicksort; caches the
    results of a function; downloads a web page; parses a JSON string; counts lines in a file; simulates rolling
    two dice; plays rock, paper, scissors; computes compound interest; formats a date; finds missing numbers in a
    range; groups words that are anagrams; computes the edit distance of two words; draws a triangle of stars;
    sums the digits of a number
""")

LANGUAGES = ["Python", "Python", "Python", "JavaScript", "C++", "Java", "Go", "C", "Rust", "SQL", "Bash", "TypeScript"]

NAMES = _split("""
    Anna; Ben; Clara; David; Elena; Farid; Grace; Hugo; Ines; Jonas; Kemal; Lucy; Maria; Nikhil; Olga; Peter;
    Quentin; Rosa; Sven; Tara; Umar; Vera; Wendy; Xavier; Yuki; Zoe
""")

GOODS = _split(
    "apples; pencils; tickets; books; cookies; eggs; marbles; stamps; bottles of water; chairs; oranges; shirts"
)

TONGUES = ["French", "Spanish", "German", "Italian", "Portuguese"]
