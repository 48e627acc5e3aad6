"""A text of many kinds: what int8 layers are smoothed with, the same for every task."""

SAMPLE = """\
The committee met on Tuesday, 14 March 2017, to discuss the budget (about $3.2 million) for the \
new library. "We can't open before June," said Ms. Okafor; nobody disagreed.

### Question: which of these is true?
 - Water boils at 100 °C at sea level.
 - The film was boring, but the actors were great!
 ### Answer: the first one

Dear Sir or Madam, I am writing to complain about my order no. 48213: it arrived late & broken. \
I WANT MY MONEY BACK!!! Regards, j.smith@example.com, http://example.com/orders?id=48213

def area(radius): return 3.14159 * radius ** 2  # in cm²

Bees, like people, sleep between five and eight hours a day. The striker scored twice in the last \
ten minutes, and United won 3-2 away from home. Shares of the airline fell 4.7% after it warned \
that fuel prices would halve its profit. Der Hund schläft unter dem Tisch; le chat dort aussi. \
<b>terms and conditions</b> | id,name,price\t7,"nails, 50 mm",2.99

### Instruction: Answer with one of: yes, no, maybe.
### Input: can you train a cat to use a toilet
### Response: maybe
"""
