package node

import "time"

const (
	firstBackOff = time.Second
	maxBackOff   = 30 * time.Second
	// A container that ran this long starts over with the shortest delay.
	backOffReset = time.Minute
)

// backOff is the delay before a container's next start: none after the first end, then doubling.
type backOff struct{ next time.Duration }

func (b *backOff) after(ran time.Duration) time.Duration {
	if ran >= backOffReset {
		b.next = 0
	}
	delay := b.next
	switch {
	case b.next == 0:
		b.next = firstBackOff
	default:
		b.next = min(2*b.next, maxBackOff)
	}
	return delay
}
