"""Every way a command can end badly, and the exit code of each.

0  all done
1  Stillhouse, raised as such or any other exception: a bug of ours, always
2  BadRecipe   the recipe or the command line is wrong: every problem at once, with line and column
   BadData     a file of a data set is wrong: names the file and the fix
   Missing     something the machine lacks (a package, a device): says what to install or to change
3  GateFailed  the numbers are in, and they break a rule of the recipe
4  Undecided   a rule could not be judged (too few images, a busy machine, a baseline that is not here), and none is broken
5  BadStore    storage: disk full, unreadable, corrupt
6  Diverged    training produced numbers that are not finite
7  Refused     input that is not trusted: pickles, unsafe paths, engines from elsewhere
8  Busy        somebody else holds what this command needs
130, 143  Stopped  by SIGINT or SIGTERM, after training state was saved
"""


class Stillhouse(Exception):
    """The root of the tree. The message says what was asked, what was found, and what to do."""

    code = 1


class BadRecipe(Stillhouse):
    code = 2


class BadData(Stillhouse):
    code = 2


class Missing(Stillhouse):
    code = 2


class GateFailed(Stillhouse):
    code = 3


class Undecided(Stillhouse):
    code = 4


class BadStore(Stillhouse):
    code = 5


class Diverged(Stillhouse):
    code = 6


class Refused(Stillhouse):
    code = 7


class Busy(Stillhouse):
    code = 8


class Stopped(Stillhouse):
    """A stage that was asked to stop raises this once its state is safe; the code tells by which signal."""

    def __init__(self, message: str, signal: int = 2):
        super().__init__(message)
        self.code = 128 + signal


JUDGED = (0, GateFailed.code, Undecided.code)  # exit codes of runs in which every stage ended
BY_NAME = {
    kind.__name__: kind for kind in (Stillhouse, BadRecipe, BadData, Missing, GateFailed, Undecided, BadStore, Diverged, Refused, Busy)
}
