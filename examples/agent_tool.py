"""An agent hands three subtasks to one local model, which writes them at the same time.

The agent's own model is a script here, so that this runs anywhere; take any that calls tools.
"""

from langchain.agents import create_agent
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage

from langchain_pos import ParallelSubtasksTool


class ScriptedModel(GenericFakeChatModel):
    """Says what it is given."""

    def bind_tools(self, tools, **kwargs):
        """It knows its tools already."""
        return self


STUDENTS = {"Ann Porter": "3.41", "Ben Castle": "2.15", "Cleo Marsh": "4.62"}
context = "Here are 3 students' resumes:\n\n" + "\n".join(
    f"The student named {name} is 21 years old, graduated from the University of Leeds with a GPA "
    f"of {gpa}. He/She is interested in Chess and his/her self-introduction is: I like to think."
    for name, gpa in STUDENTS.items()
)
prompt = "Which student has a GPA between 3.00 and 3.50? Look at this student only."
subtasks = [{"title": name, "prompt": prompt} for name in STUDENTS]
call = {"name": "run_parallel_subtasks", "args": {"subtasks": subtasks, "context": context}}
said = [AIMessage("", tool_calls=[{**call, "id": "1"}]), AIMessage("Thank you.")]
model = ScriptedModel(messages=iter(said), disable_streaming=True)

agent = create_agent(model, [ParallelSubtasksTool()])
question = {"messages": [("user", "Who has a GPA between 3.00 and 3.50?")]}
for mode, event in agent.stream(question, stream_mode=["custom", "updates"]):
    if mode == "custom" and event["event"] == "token":
        print(f"{event['title']:12} {event['delta']!r}")
    elif mode == "updates" and "tools" in event:
        print("\n" + event["tools"]["messages"][-1].content)
