"""Questions of every day, written for this project: `transcripts` and the tests ask them."""

from __future__ import annotations

EVERYDAY = """\
Hello
What is the capital of Portugal?
Compare Python, Go and Rust for a small web service.
How do I get red wine out of a white tablecloth?
Write a limerick about a lighthouse keeper.
What should I pack for a week in Norway in March?
17 + 25
Explain how a refrigerator works to a ten-year-old.
Give me five ideas for a birthday party in the garden.
Which is healthier, butter or margarine?
Translate "good morning" into Spanish.
Why is the sky blue?
Draft an e-mail to my landlord about a broken heater.
What are the pros and cons of buying an electric car?
Write a Python function that reverses a linked list.
How can I fall asleep faster?
Summarise the plot of Romeo and Juliet.
What is the difference between weather and climate?
Plan a three-day trip to Vienna with children.
List the planets of the solar system.
How long do I boil an egg?
Suggest names for a black cat.
Who painted the Mona Lisa?
What questions should I ask in a job interview?
Is it rude to recline one's seat on a plane?
Describe the steps of making sourdough bread.
What would happen if the moon disappeared?
Recommend some exercises for back pain.
How does compound interest work?
Tell me a joke.
"""
