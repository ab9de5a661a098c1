"""What every part of Fluffle speaks: models, updates, messages and the broker. Imports none of the parts."""
