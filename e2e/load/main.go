// Load makes and answers HTTP load for measurements: light enough that two cores are enough for it and what it measures.
//
//	load stub                                    answers as an OpenAI server, as fast as it can
//	load drive -address HOST:PORT [...]          asks in a closed loop and prints one JSON object of figures
//	load streams -host NAME -port PORT [...]     holds many streams for long and writes one JSON line per request
package main

import (
	"fmt"
	"os"
)

func main() {
	commands := map[string]func([]string) error{"stub": stub, "drive": drive, "streams": streams}
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: load stub|drive|streams [flags]")
		os.Exit(2)
	}
	if err := commands[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}
