"""The line between a front end and its worker; standard library and numpy only. `medssl.messages` says what travels.

launch       the command that starts a worker, here or over ssh
framing      one message: header and arrays
codec        volumes, masks and prompts as arrays of a message
connection   a worker's process, its pipes and their threads
ticket       a request under way
"""
