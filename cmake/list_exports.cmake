# Turns a version script of ours (one anonymous node) into a list, one exported name a line.
file(READ "${MAP}" text)
string(REGEX REPLACE "local:.*" "" text "${text}")
string(REGEX REPLACE ".*global:" "" text "${text}")
string(REGEX MATCHALL "[A-Za-z_][A-Za-z0-9_]*" names "${text}")
list(SORT names)
list(JOIN names "\n" lines)
file(WRITE "${LIST}" "${lines}\n")
