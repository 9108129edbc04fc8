# What doxygen reads of a header: names without their inline namespace, the blocks of a docstring as paragraphs.
s,inline namespace v0 \{,extern "C++" {,
# three blanks: a line of code
s,^( *///)   ([^ ]),\1      \2,
t
s,^( *///) ([A-Z][a-z]+)  +,\1 @block{\2} ,
# template arguments are no HTML
:again
s,(///.*)<([A-Za-z_][^<>]*)>,\1\&lt;\2\&gt;,
t again
