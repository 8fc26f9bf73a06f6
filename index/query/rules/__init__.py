"""Rules of scenarios, which narrow a question for a list, weigh what is found, and give its places away."""
