"""Mail for agents that live at another relay."""
