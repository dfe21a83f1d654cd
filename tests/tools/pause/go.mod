module sluice.dev/tests/tools/pause

go 1.26.8
