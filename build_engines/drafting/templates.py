"""The kinds of prompt a chat assistant gets, as templates: name of the kind, weight, and ways to say it."""

from __future__ import annotations

from build_engines.drafting import topics

# What each field of a template is filled with; {a} and {b}, {n} and so on are handled by `prompts`.
FIELDS = {
    "subject": topics.SUBJECTS, "other": topics.SUBJECTS, "place": topics.PLACES, "role": topics.ROLES,
    "reader": topics.PEOPLE, "object": topics.OBJECTS, "thing": topics.OBJECTS, "mood": topics.MOODS,
    "mail": topics.MAIL,
    "problem": topics.PROBLEMS, "task": topics.TASKS, "code": topics.LANGUAGES, "name": topics.NAMES,
    "friend": topics.NAMES, "goods": topics.GOODS, "tongue": topics.TONGUES,
}  # fmt: skip

KINDS: tuple[tuple[int, tuple[str, ...]], ...] = (
    # writing
    (14, (
        "Write a short story about {object}.",
        "Write a {mood} short story about {object} and {thing}, set in {place}.", "Write a poem about {subject}.",
        "Write a {mood} poem about {object}.", "Write a haiku about {subject}.",
        "Write a blog post introduction about {subject}.", "Write a blog post about a weekend in {place}.",
        "Describe {object} in a {mood} way, in one paragraph.", "Write a product description for {object}.",
        "Write the opening scene of a {mood} novel in {place}. It begins with {object}.",
        "Write a dialogue between {role} and {name} about {subject}.", "Write a speech about {subject} for {reader}.",
        "Write an essay of three paragraphs on {subject}.", "Write a song about {place}.",
        "Write a {mood} review of a restaurant in {place}.", "Describe a character named {name} who loves {subject}.",
        "Write a diary entry of {role} after a long day.", "Come up with {n} titles for a book about {subject}.",
        "Write a slogan for a company that sells {goods}.", "Write a limerick about {role}.",
    )),
    (6, (
        "Write an email {mail}.", "Draft a short and polite email {mail}.", "Write a formal letter {mail}.",
        "Write a text message {mail}.", "Help me write a {mood} email {mail}. My name is {name}.",
    )),
    # explaining
    (16, (
        "Explain {subject} to {reader}.", "What is {subject}?", "How does {subject} work?",
        "Why does {subject} matter?", "Explain {subject} in simple terms.", "Give me a short overview of {subject}.",
        "Tell me about {subject}.", "What are common misconceptions about {subject}?",
        "Explain the history of {subject} in a few sentences.", "Teach me the basics of {subject} step by step.",
        "What should {reader} know about {subject}?", "What is the most important thing about {subject}, and why?",
        "Explain {subject} with an analogy.", "How has {subject} changed over the last hundred years?",
        "Give an example of {subject} from daily life.",
    )),
    (8, (
        "What does {term} mean in computing?", "Explain {term} to {reader}.", "What is {term}?",
        "Give a short definition of {term} and an example.", "What is {term} used for?",
        "Is {term} still used today? Explain.", "What is the difference between {term} and {term2}?",
    )),
    # comparing and judging
    (8, (
        "Compare {subject} and {other}.", "What do {subject} and {other} have in common?",
        "What is the difference between {subject} and {other}?",
        "Which is more useful, {subject} or {other}? Explain why.", "What are the pros and cons of {subject}?",
        "Argue for and against {subject}.", "Compare {place} and {place2}.",
        "Make a table that compares {subject} and {other}.", "Is {subject} overrated? Give your reasons.",
        "How does {subject} influence {other}?", "Discuss the ethical questions around {subject}.",
    )),
    # listing and planning
    (8, (
        "List {n} facts about {subject}.", "List {n} tips for {reader} who wants to learn about {subject}.",
        "Give me {n} ideas for a party with the theme {subject}.", "Name {n} things to do in {place}.",
        "Plan a {n}-day trip to {place}.", "What should I pack for a trip to {place}?",
        "List the steps to get started with {subject}.", "Suggest {n} questions for a quiz about {subject}.",
        "Make a weekly plan to study {subject}.", "What do I need to know before I travel to {place}?",
        "Write a packing list for {role}.", "Write an outline for a presentation about {subject}.",
        "Give me a recipe from {place}.",
    )),
    # advice
    (5, (
        "{problem}. What can I do?", "I need advice: {problem}.", "{problem}. Give me {n} practical tips.",
        "{problem}. Make a plan for the next four weeks.",
        "My friend {name} says: \"{problem}.\" What should I answer?",
    )),
    # role play
    (8, (
        "You are {role}. Introduce yourself.",
        "Pretend to be {role}. {name} asks you about {subject}. What do you say?",
        "Act as {role} and explain {subject}.", "You are {role}. Describe your typical day.",
        "Imagine you are {role} and you find {object}. What happens next?",
        "Answer as {role}: what do you think of {subject}?", "You are {role}. Convince me to visit {place}.",
        "Imagine you are {role}. Give a {mood} talk about {subject}.",
        "Speak like {role} and tell me a joke about {subject}.", "You are {role}. {problem}. What do you tell me?",
    )),
    # arithmetic and reasoning
    (9, (
        "{name} has {a} {goods} and buys {b} more. Then {name} gives {c} to {friend}. How many {goods} are left?",
        "What is {a} + {b} * {c}?", "What is {a} percent of {big}?", "Solve for x: {c}x + {a} = {big}.",
        "A train travels {big} km in {c} hours. What is its average speed?",
        "What is {big} divided by {c}? Show the steps.",
        "{goods} cost {c} dollars each. How much do {a} of them cost, and how much change is there from {big} dollars?",
        "A rectangle is {a} cm long and {c} cm wide. What are its area and perimeter?",
        "The sum of two numbers is {big} and their difference is {a}. What are the numbers?",
        "What comes next: {c}, {c2}, {c3}, {c4}?",
        "If f(x) = {c}x^2 - {a}x + {b}, what is f({c})? Explain step by step.",
        "{name} is {c} years older than {friend}. Together they are {big} years old. How old is each of them?",
        "How many ways are there to choose {c} of {a} {goods}?",
        "What is the probability to roll a sum of {c} with two dice?",
        "A bag holds {a} red and {b} blue marbles. What is the probability to draw a red one?",
        "{name} is taller than {friend}, and {friend} is taller than {name2}. Who is the smallest? "
        "Explain your reasoning.",
        "All {goods} are on the table. Some things on the table are red. Are some {goods} red? Explain.",
        "Which word does not belong: {goods}, {goods2}, {place}? Why?",
    )),
    # code
    (9, (
        "Write a {code} function that {task}.", "Write a {code} program that {task}. Add comments.",
        "How do I write {code} code that {task}?", "Explain step by step how to write a function that {task}.",
        "Write a {code} function that {task} and an example that uses it.",
        "Write tests for a {code} function that {task}.",
        "What is the time complexity of code that {task}? Show the code in {code}.",
        "Show me two ways to write a {code} function that {task}.",
        "I am learning {code}. Show me code that {task} and explain every line.",
        "Write a {code} class for a shop that sells {goods}.",
        "Write an SQL query that finds the {n} customers who bought the most {goods}.",
        "Write an HTML page about {subject}.",
    )),
    # working on a text
    (9, (
        "Summarize this text in one sentence:\n\n{text}", "Summarize the following text.\n\n{text}",
        "Rewrite this text so that {reader} understands it:\n\n{text}",
        "Extract the key points from this text as a list:\n\n{text}", "{text}\n\nWhat is this text about?",
        "Make this text shorter:\n\n{text}", "Write three questions about this text:\n\n{text}",
        "Translate the first sentence into {tongue}:\n\n{text}",
        "List all names and products in this text as JSON:\n\n{text}",
        "Find the main idea of this text and explain it:\n\n{text}", "Continue this text:\n\n{text}",
        "Rewrite this text in a {mood} tone:\n\n{text}", "Give this text a title and say why it fits:\n\n{text}",
    )),
    # languages
    (2, (
        "Translate into {tongue}: I would like to buy {n} {goods}, please.",
        "How do you say \"{problem}\" in {tongue}?",
        "Correct the grammar: {name} have went to {place} and buyed {goods}.",
        "What is another word for {mood}? Use it in a sentence.",
        "Make a sentence with the words {mood}, {goods} and {place}.",
        "Fix the spelling: definately, recieve, seperate, {mood}.",
    )),
    # small talk
    (1, (
        "Hello! Who are you?", "Hi, my name is {name}. Can you help me with {subject}?",
        "Tell me something interesting about {place}.", "Tell me a joke about {subject}.",
        "What is your favourite thing about {place}?", "Good morning! What can you do for me?",
    )),
)  # fmt: skip
