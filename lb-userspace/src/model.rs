//! What the agent is told to do, validated.
