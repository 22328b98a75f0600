"""The others' servers, each a program as a competent user of that server would write it."""
